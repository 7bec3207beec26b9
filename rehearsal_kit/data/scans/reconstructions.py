"""Reconstructions that other programs left, without counts or with counts in a file of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.doors.arrays import Arrays, arrays_of
from rehearsal_kit.data.scans.scan import Floats, patch_corners

MEASURED_FIELDS = ("data", "scan_nominal", "scan_true")
MEASURED_WITH = "epie_reconstruction.npz"
"""The reconstruction that lies beside measured counts."""
WELL_COVERED = 0.03
"""Share of the best coverage."""
_RPIE_FIELDS = ("object", "probe", "patch_origin", "coverage", "good_pixels")
_PTYCHOPINN_FIELDS = ("objectGuess", "probeGuess", "xcoords", "ycoords")
_CDTOOLS_FIELDS = ("obj", "probe", "translation", "basis")


@dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """What phase retrieval found: the sample, the beam and where it was."""

    name: str
    object: NDArray[np.complex64]
    """(row, column)."""
    probe: NDArray[np.complex64]
    """(mode, row, column)."""
    positions_px: Floats
    """Centre of each patch (frame, 2), row and column, in pixels of the object."""
    layout: str
    """Layout of the source: "rpie", "cdtools", "ptychopinn" or "specimen"."""


def read_reconstruction(path: str | Path) -> Reconstruction:
    """The reconstruction in an .npz or .mat file; the layout is recognised by its fields.

    Raises:
        ScanError: no such file, not of its kind, no known layout, or positions outside the object.
    """
    path = Path(path)
    arrays = arrays_of(path)
    readers = ((_RPIE_FIELDS, _rpie), (_PTYCHOPINN_FIELDS, _ptychopinn), (_CDTOOLS_FIELDS, _cdtools))
    for fields, read in readers:
        if set(fields) <= set(arrays):
            found = read(path.stem, arrays)
            _require_inside(path, found)
            return found
    known = "; ".join(", ".join(fields) for fields, _ in readers)
    raise ScanError(f"{path}: holds {', '.join(arrays)}; a reconstruction needs one of these sets: {known}.")


def is_measured(path: str | Path) -> bool:
    """Whether an .npz file holds measured counts with positions."""
    return set(MEASURED_FIELDS) <= set(arrays_of(Path(path)))


def read_measured(path: str | Path) -> Acquisition:
    """Measured counts with the reconstruction that lies beside them, in object pixels.

    Frames whose central half is not well covered by the beam are left out: their targets are not known.

    Raises:
        ScanError: no such files, a field is missing, or numbers of frames that differ.
    """
    path = Path(path)
    arrays, beside = arrays_of(path), path.with_name(MEASURED_WITH)
    found = arrays_of(beside)
    for name, fields, have in ((path, MEASURED_FIELDS, arrays), (beside, _RPIE_FIELDS, found)):
        missing = set(fields) - set(have)
        if missing:
            raise ScanError(f"{name}: lacks {', '.join(sorted(missing))}.")
    counts, origins = arrays["data"], found["patch_origin"].astype(np.int64)
    if len(counts) != len(origins):
        raise ScanError(f"{path}: {len(counts)} frames, but {beside.name} has {len(origins)} positions.")
    side = counts.shape[-1]
    covered = covered_patches(found["coverage"], origins, side)
    return Acquisition(
        counts=np.fft.fftshift(counts[covered], axes=(1, 2)),
        positions_px=origins[covered] + side / 2,
        simulated=False,
        object=found["object"],
        probe=found["probe"],
        good_pixels=np.fft.fftshift(found["good_pixels"]).astype(bool),
    )


def covered_patches(coverage: NDArray[Any], corners: NDArray[Any], side: int) -> NDArray[np.bool_]:
    """Whether the central half of each patch (patch,) is well covered by the beam.

    coverage: (row, column), 1 where it is best. corners: first row and column of each patch of `side` pixels.
    """
    first = np.floor(corners + 0.5).astype(np.int64) + side // 4
    return np.array(
        [
            (part := coverage[max(row, 0) : row + side // 2, max(column, 0) : column + side // 2]).size > 0
            and part.min() > WELL_COVERED
            for row, column in first
        ],
        bool,
    )


def _rpie(name: str, arrays: Arrays) -> Reconstruction:
    probe = arrays["probe"].astype(np.complex64)
    centres = arrays["patch_origin"] + probe.shape[-1] / 2
    return Reconstruction(
        name=name, object=arrays["object"], probe=probe, positions_px=centres, layout="rpie"
    )


def _ptychopinn(name: str, arrays: Arrays) -> Reconstruction:
    return Reconstruction(
        name=name,
        object=arrays["objectGuess"].astype(np.complex64),
        probe=arrays["probeGuess"].astype(np.complex64)[None],
        positions_px=np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1),
        layout="ptychopinn",
    )


def _cdtools(name: str, arrays: Arrays) -> Reconstruction:
    """CDTools keeps metres: the basis (3, 2) says how rows and columns lie in space.

    Its object is as large as the scan needs plus the same padding all around, so the padding follows from
    the shapes. The part that no frame has seen is exactly one, which checks the mapping.
    """
    object_, probe = arrays["obj"], arrays["probe"]
    shifts = arrays["translation"] @ np.linalg.pinv(arrays["basis"]).T
    shifts = (shifts - shifts.min(axis=0)).astype(np.float64)
    padding = (np.array(object_.shape) - probe.shape[1:] - np.ceil(shifts.max(axis=0))) / 2
    centres = shifts + np.floor(padding) + np.array(probe.shape[1:]) / 2
    corners = patch_corners(centres, probe.shape[-1])
    seen = np.argwhere(object_ != 1)
    first, last = seen.min(axis=0), seen.max(axis=0) + 1 - probe.shape[1:]
    if (np.abs(corners.min(axis=0) - first) > 1).any() or (np.abs(corners.max(axis=0) - last) > 1).any():
        raise ScanError(
            f"{name}: patches begin at {corners.min(axis=0)} to {corners.max(axis=0)}, but the part of the "
            f"object that is not empty needs {first} to {last}; its translation, basis and obj do not belong "
            "together."
        )
    return Reconstruction(name=name, object=object_, probe=probe, positions_px=centres, layout="cdtools")


def _require_inside(path: Path, found: Reconstruction) -> None:
    side = found.probe.shape[-1]
    corners = patch_corners(found.positions_px, side)
    if found.object.ndim != 2 or found.probe.ndim != 3 or found.probe.shape[1] != side:
        raise ScanError(
            f"{path}: object {found.object.shape} and probe {found.probe.shape}; they must be (row, column) "
            "and (mode, row, column) with square modes."
        )
    if (corners < 0).any() or (corners + side > found.object.shape).any():
        raise ScanError(
            f"{path}: patches of {side} pixels begin at {corners.min(axis=0)} to {corners.max(axis=0)} and "
            f"leave the object of {found.object.shape}."
        )
