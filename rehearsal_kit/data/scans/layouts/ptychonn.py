"""The layout "ptychonn": .npz archives that PtychoNN is trained on, one for each scan.

Frames are raw counts, of which PtychoNN takes those below zero as none. The answer, `real`, is the part of
the object around each position, on a grid of `pixelsize` metres; the whole object is put together from these
parts. Positions are (y, x) of the probe over the object, in metres.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, ObjectPlace, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.quantities import require_positive
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES, POSITIONS, PATCHES, PIXEL = "reciprocal", "position", "real", "pixelsize"
LARGEST_SIDE = 2**15
"""Pixels of a side of an object that is put together."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames and positions by the names that PtychoNN has."""
    return file.find(FRAMES) is not None and file.find(POSITIONS) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the array that is missing or wrong."""
    frames = frames_at(file, FRAMES)
    positions = file.values(POSITIONS).astype(np.float64)
    if positions.ndim != 2 or positions.shape[1] != 2:
        raise ScanError(
            f"{file.path}: {POSITIONS} is of shape {positions.shape}; it must be (frame, 2), y and x."
        )
    place, reason = _object(file, positions[: len(frames)], len(frames))
    return paired(
        ScanDescription(
            layout="ptychonn",
            counts=frames,
            positions=Positions(values=positions, unit="m"),
            object=place,
            no_object=reason,
            negative="zero",
            found={
                "frames": f"{FRAMES}, below zero is none",
                "positions": f"{POSITIONS}, y and x in m",
                **({"object": f"{PATCHES}, put together", "object pixel": PIXEL} if place else {}),
            },
        ),
        file,
    )


def _object(file: ScanFile, positions: Floats, frames: int) -> tuple[ObjectPlace | None, str]:
    """Where the object is that patches give together, and otherwise why there is none."""
    if file.find(PATCHES) is None:
        return None, f"there is no {PATCHES}: nothing to train on"
    patches, pixel = file.dataset(PATCHES), file.number(PIXEL)
    if pixel is None:
        return None, f"{PATCHES} does not say how large its pixels are: there is no {PIXEL}"
    require_positive(pixel, f"{file.path}: {PIXEL}")
    side = patches.shape[-1]
    if (
        patches.ndim != 3
        or patches.dtype.kind not in "cf"
        or patches.shape != (frames, side, side)
        or not side
    ):
        return None, f"{PATCHES} is {patches.dtype} of shape {patches.shape}, no squares of {frames} frames"
    corner = positions.min(axis=0) - side / 2 * pixel
    extent = np.ptp(positions, axis=0) / pixel
    if not (np.isfinite(extent).all() and (extent < LARGEST_SIDE - side).all()):
        raise ScanError(
            f"{file.path}: positions reach over {extent.max():g} pixels of {pixel:g} m; an object has at "
            f"most {LARGEST_SIDE}. Check their unit and {PIXEL}."
        )
    rows, columns = (int(np.floor(each + 0.5)) + side for each in extent)
    place = ObjectPlace(
        path=file.path, at=PATCHES, shape=(rows, columns), origin=corner, pixel_m=pixel, patches=True
    )
    return place, ""
