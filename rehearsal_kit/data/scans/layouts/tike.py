"""The layout "tike": .npz archives with arrays as tike has them, DC at the corner of the frames.

Positions are corners of patches, row and column, in pixels of the object: `scan_true` where they were
refined, else `scan`, else `scan_nominal`. The reconstruction lies in a file beside it, with the corners of
the patches in it, the pixels that were trusted and how well the beam covered each pixel of the object.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import (
    Floats,
    Mask,
    ObjectPlace,
    Positions,
    ReconstructionDescription,
    ScanDescription,
)
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_looks import have_corner_dc
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.objects import shape_of_object
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.data.scans.reconstructions import MEASURED_WITH, covered_patches

FRAMES, PROBE = "data", "probe"
POSITIONS = ("scan_true", "scan", "scan_nominal")
BESIDE = MEASURED_WITH
OBJECT, CORNERS, COVERAGE, GOOD = "object", "patch_origin", "coverage", "good_pixels"


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames, positions and a probe by the names that tike has."""
    return all(found is not None for found in (file.find(FRAMES), file.find(PROBE), file.first(*POSITIONS)))


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the array that is missing or wrong."""
    frames = frames_at(file, FRAMES)
    at = file.first(*POSITIONS) or POSITIONS[0]
    corner = have_corner_dc(file, frames, otherwise=True)
    middle = np.array(frames.stored_shape) / 2
    return paired(
        ScanDescription(
            layout="tike",
            counts=replace(frames, corner=corner),
            positions=Positions(values=_corners(file, at) + middle, unit="pixel"),
            found={
                "frames": f"{FRAMES}, DC {'at the corner' if corner else 'in the centre'}",
                "positions": f"{at}, corners of patches in pixels of the object",
            },
        ),
        file,
    )


def recognises_reconstruction(file: ScanFile) -> bool:
    """Whether the file has an object, a probe and the corners of its patches."""
    return all(file.find(at) is not None for at in (OBJECT, PROBE, CORNERS))


def describe_reconstruction(file: ScanFile) -> ReconstructionDescription:
    """The reconstruction in an open file; ScanError names the array that is missing or wrong."""
    shape, layer, reason = shape_of_object(file.dataset(OBJECT), OBJECT)
    side = file.dataset(PROBE).shape[-1]
    corners = _corners(file, CORNERS)
    covered = np.ones(len(corners), bool)
    if file.find(COVERAGE) is not None and shape is not None:
        covered = covered_patches(file.values(COVERAGE, shapes=(shape,)), corners, side)
    good: Mask | None = None
    if file.find(GOOD) is not None:
        good = file.values(GOOD, shapes=((side, side),), kinds="biu") != 0
    return ReconstructionDescription(
        place=shape
        and ObjectPlace(
            path=file.path, at=OBJECT, shape=shape, origin=np.zeros(2), layer=layer, probe_side=side
        ),
        no_object=reason,
        positions=Positions(values=corners[covered] + side / 2, unit="pixel"),
        numbers=np.flatnonzero(covered),
        bad=None if good is None else ~good,
    )


def _corners(file: ScanFile, at: str) -> Floats:
    values: Floats = file.values(at).astype(np.float64)
    if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all():
        raise ScanError(
            f"{file.path}: {at} is of shape {values.shape}; it must be (frame, 2), finite rows and columns."
        )
    return values
