"""The layout "own_label": labels that phase retrieval made here, as `data/labels/label_files.py` writes
them."""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ObjectPlace, Positions, ReconstructionDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.reconstructions import covered_patches

FORMAT = "rehearsal_kit_label"
OBJECT, PROBE, COVERAGE, POSITIONS = "/object", "/probe", "/coverage", "/positions"
BESIDE = "{stem}_label.h5"
"""Name of the label beside a scan."""


def recognises_reconstruction(file: ScanFile) -> bool:
    """Whether the file says that it is a label."""
    return file.attribute("/", FORMAT) is not None


def describe_reconstruction(file: ScanFile) -> ReconstructionDescription:
    """The label in an open file, of those frames whose targets the beam has covered.

    Raises:
        ScanError: an array that is missing, wrong, or does not fit the others.
    """
    shape, side = file.dataset(OBJECT).shape, file.dataset(PROBE).shape[-1]
    positions = file.values(POSITIONS, kinds="f").astype(np.float64)
    if len(shape) != 2 or positions.ndim != 2 or positions.shape[1] != 2 or not np.isfinite(positions).all():
        raise ScanError(
            f"{file.path}: its object is {shape} and its positions are {positions.shape}; they must be (row, "
            "column) and finite (frame, 2). Make the label anew."
        )
    corners = np.rint(positions - side / 2).astype(np.int64)
    covered = covered_patches(file.values(COVERAGE, shapes=(shape,), kinds="f"), corners, side)
    pixel = file.number("/@pixel_m")
    return ReconstructionDescription(
        place=ObjectPlace(
            path=file.path,
            at=OBJECT,
            shape=(shape[0], shape[1]),
            origin=np.zeros(2),
            pixel_m=pixel,
            probe_side=side,
        ),
        positions=Positions(values=positions[covered], unit="pixel"),
        numbers=np.flatnonzero(covered),
    )
