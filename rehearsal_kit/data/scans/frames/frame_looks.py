"""What a few frames show where a layout leaves it open: counts or amplitudes, and where DC lies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.raw_frames import RawFrames

LOOKED_AT = 4
"""Frames, spread over the whole scan."""
CLEARLY = 2.0
"""So many times more light in the middle, or at the corners, decides where DC lies."""


def hold_whole_numbers(file: ScanFile, frames: RawFrames) -> bool:
    """Whether frames hold whole numbers, as counts are and their square roots are not.

    Raises:
        ScanError: a frame that cannot be read.
    """
    if frames.dtype.kind in "iu":
        return True
    seen = _some(file, frames)
    seen = seen[np.isfinite(seen)]
    return bool((seen == np.floor(seen)).all())


def have_corner_dc(file: ScanFile, frames: RawFrames, *, otherwise: bool) -> bool:
    """Whether DC lies at the corner of frames: their light is there, and not in the middle.

    otherwise: the answer where neither is clearly brighter.

    Raises:
        ScanError: a frame that cannot be read.
    """
    light = np.nan_to_num(np.abs(_some(file, frames).astype(np.float64))).sum(axis=0)
    light = np.minimum(light, np.percentile(light, 99))  # else one hot pixel would decide
    rows, columns = light.shape
    middle = light[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].mean()
    # Shifted by half, the four corners are the middle.
    light = np.roll(light, (rows // 2, columns // 2), axis=(0, 1))
    corners = light[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4].mean()
    if middle > CLEARLY * corners:
        return False
    return True if corners > CLEARLY * middle else otherwise


def _some(file: ScanFile, frames: RawFrames) -> NDArray[Any]:
    """A few frames as stored (frame, row, column)."""
    stored = frames.whole()
    numbers = np.unique(np.linspace(0, len(stored) - 1, LOOKED_AT).round().astype(int))
    return np.concatenate([stored.read(file, int(number), int(number) + 1) for number in numbers])
