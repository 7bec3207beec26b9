"""Where the beam hits the detector, seen in the mean of some frames, and the square to cut around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.frames.raw_frames import Window

SHARES = (0.05, 0.1, 0.2, 0.3)
"""Shares of the peak above which pixels belong to the beam; the median of what they say counts."""
PEAK = 99.9
"""Percentile of the mean frame that is taken for the peak: a single pixel says nothing."""
NEAR_MIDDLE = 1 / 64
"""A beam that is no further from the middle of a square frame, in sides of it, was put there by whoever
cut it."""


def beam_centre(mean: NDArray[np.floating]) -> tuple[float, float] | None:
    """Row and column of the centre of the beam in a mean frame without bad pixels; None if there is none.

    The middle of the box around the largest region that is brighter than a share of the peak, as `holoptycho`
    takes it: a beam stop, which lies inside of that region, does not move it as it would move the centre of
    mass.
    """
    from scipy import ndimage  # noqa: PLC0415 - a tenth of what a worker imports, for few files only

    lit = mean[mean > 0]
    if not lit.size:
        return None
    # Of a small beam in a large frame, the percentile of all pixels would be darkness.
    peak = max(float(np.percentile(lit, PEAK)), float(np.percentile(mean, PEAK)))
    centres = []
    for share in SHARES:
        labels, count = ndimage.label(mean > share * peak, structure=np.ones((3, 3), int))
        if count:
            largest = int(np.argmax(np.bincount(labels.ravel())[1:]))
            rows, columns = ndimage.find_objects(labels)[largest]
            centres.append(((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2))
    if not centres:
        return None
    row, column = np.median(np.array(centres), axis=0)
    return float(row), float(column)


def window_around(
    path: Path, centre: tuple[float, float], shape: tuple[int, int], *, side: int | None
) -> Window:
    """The square of `side` pixels in which the beam hits pixel (side / 2, side / 2), where `ifft2` has DC.

    centre: where the beam hits, row and column, counted from the corner of the first pixel. side: None for
    the largest power of two that fits.

    Raises:
        ScanError: the beam lies outside the frame, or the square does.
    """
    if not (0 < centre[0] < shape[0] and 0 < centre[1] < shape[1]):
        raise ScanError(
            f"{path}: the beam is said to hit row {centre[0]:.1f}, column {centre[1]:.1f} of frames of "
            f"{shape[0]} x {shape[1]} pixels; give ScanReading(centre=(row, column))."
        )
    # The pixel in which the beam hits becomes that of DC: number side / 2.
    row, column = (int(np.floor(each)) for each in centre)
    room = 2 * min(row, shape[0] - row, column, shape[1] - column)
    wanted = side if side is not None else 1 << max(room, 1).bit_length() - 1
    if not 2 <= wanted <= room:
        raise ScanError(
            f"{path}: a square of {wanted} pixels around the beam at row {row}, column {column} does not fit "
            f"into frames of {shape[0]} x {shape[1]}; at most {room} do. Choose a smaller crop, or another "
            "centre."
        )
    return Window(row - wanted // 2, column - wanted // 2, wanted)


def is_in_the_middle(centre: tuple[float, float], shape: tuple[int, int]) -> bool:
    """Whether the frame is a square that somebody has already cut around the beam."""
    off = max(abs(each - side / 2) for each, side in zip(centre, shape, strict=True))
    return shape[0] == shape[1] and off <= max(1.0, shape[0] * NEAR_MIDDLE)
