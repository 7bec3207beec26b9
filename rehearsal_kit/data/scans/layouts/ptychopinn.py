"""The layout "ptychopinn": .npz archives as PtychoPINN reads them, at SLAC and elsewhere.

Its `docs/data_contracts.md` has frames in `diff3d` or `diffraction`, either (frame, row, column) or, in older
files, (row, column, frame), and says that they are square roots of counts unless they are whole numbers.
Positions are pixels of `objectGuess`: rows ycoords - 32 to ycoords + 32 belong to a frame of 64 pixels. An
archive without frames is a reconstruction for those in another file.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import (
    ObjectPlace,
    Positions,
    ReconstructionDescription,
    ScanDescription,
)
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_looks import hold_whole_numbers
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.frames.raw_frames import AXES
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = ("diff3d", "diffraction")
ROWS, COLUMNS, OBJECT, PROBE = "ycoords", "xcoords", "objectGuess", "probeGuess"


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames and positions by the names that PtychoPINN has."""
    return file.first(*FRAMES) is not None and file.find(COLUMNS) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the array that is missing or wrong."""
    at = file.first(*FRAMES) or FRAMES[1]
    positions = _positions(file)
    frames = frames_at(file, at, axes=_axes(file, at, len(positions.values)))
    amplitude = not hold_whole_numbers(file, frames)
    place, reason = _object(file)
    return paired(
        ScanDescription(
            layout="ptychopinn",
            counts=frames,
            positions=positions,
            object=place,
            no_object=reason,
            amplitude=amplitude,
            found={
                "frames": f"{at}, {frames.axes}, {'square roots of counts' if amplitude else 'counts'}",
                "positions": f"{ROWS} and {COLUMNS}, pixels of the object",
                **({"object": OBJECT} if place else {}),
            },
        ),
        file,
    )


def recognises_reconstruction(file: ScanFile) -> bool:
    """Whether the file has an object, a probe and positions, but no frames."""
    there = all(file.find(at) is not None for at in (OBJECT, PROBE, ROWS, COLUMNS))
    return there and file.first(*FRAMES) is None


def describe_reconstruction(file: ScanFile) -> ReconstructionDescription:
    """The reconstruction in an open file; ScanError names the array that is missing or wrong."""
    place, reason = _object(file)
    return ReconstructionDescription(place=place, no_object=reason, positions=_positions(file))


def _axes(file: ScanFile, at: str, positions: int) -> str:
    """How the axes of frames lie: that of the frames is as long as there are positions."""
    shape = file.dataset(at).shape
    if len(shape) != 3 or (shape[0] == positions) == (shape[2] == positions):
        raise ScanError(
            f"{file.path}: {at} is of shape {shape} and there are {positions} positions: which axis is "
            "that of the frames is not known. Say axes=... in a mapping."
        )
    return AXES[0] if shape[0] == positions else AXES[1]


def _positions(file: ScanFile) -> Positions:
    rows, columns = (file.values(at).reshape(-1).astype(np.float64) for at in (ROWS, COLUMNS))
    if len(rows) != len(columns):
        raise ScanError(
            f"{file.path}: {ROWS} has {len(rows)} positions and {COLUMNS} has {len(columns)}; there must "
            "be as many of both."
        )
    return Positions(values=np.stack([rows, columns], axis=1), unit="pixel")


def _object(file: ScanFile) -> tuple[ObjectPlace | None, str]:
    if file.find(OBJECT) is None:
        return None, f"there is no {OBJECT}: nothing to train on"
    shape, layer, reason = shape_of_object(file.dataset(OBJECT), OBJECT)
    if shape is None:
        return None, reason
    probe = None if file.find(PROBE) is None else file.dataset(PROBE).shape[-1]
    place = ObjectPlace(
        path=file.path, at=OBJECT, shape=shape, origin=np.zeros(2), layer=layer, probe_side=probe
    )
    return place, ""
