"""The layout "ptychoshelves": a file *_dp.hdf5 with frames and one *_para.hdf5 with positions.

PtychoShelves of PSI reads these pairs, as fold_slice of the APS and of Cornell has them; ptychodus reads and
writes them, too. Lengths are in metres for X-rays and in Angstrom for electrons, and no file says which.

The sign is that of fold_slice: its loaders negate ppX and ppY (`+scans/+positions/hdf5_pos.m`), and its core
turns both round again, from the sample's motion to the probe's (`ptycho_adjust_positions.m`). So the probe
moves by +ppY over rows and +ppX over columns, as ptychodus takes them.

MATLAB counts axes the other way round than Python: what it wrote as (row, column, frame) reads as (frame,
column, row). Files do not say who wrote them, so a pair with positions as MATLAB writes them is refused until
a person has said how frames lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import positions_beside
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.frames.raw_frames import AXES, RawFrames
from rehearsal_kit.data.scans.geometry import EV_TIMES_M
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.quantities import LENGTHS, factor_of, require_positive
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/dp"
PARAMETERS = ("para.hdf5", "para.h5")
LONGEST_M = 1e-3
"""No scan of X-rays reaches this far, and none of electrons is less than this many Angstrom wide."""
LONGEST_WAVE_M = 1e-6
"""No X-ray has this wavelength in metres, and no electron one this short in Angstrom."""
ELECTRON_EV = 510_998.95
"""What an electron at rest is worth."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames where PtychoShelves has them, and no positions as other layouts do."""
    return file.find(FRAMES) is not None and file.first("/points", "/positions") is None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    name = positions_beside(file, reading.positions, parameters(file))
    values = _Parameters.of(file.other(name))
    frames, axes = _frames(file, len(values.positions))
    if values.as_matlab and reading.orientation is None and axes == AXES[0]:
        raise ScanError(
            f"{file.path}: the positions in {name} are of a shape that MATLAB writes. If it wrote {FRAMES}, "
            "too, frames have to be transposed: ScanReading(orientation=4); if Python did, they have not: "
            "ScanReading(orientation=0)."
        )
    found = {
        "frames": f"{FRAMES}, {axes}",
        "positions": f"{name}: /ppY and /ppX, in {values.unit}, the probe's motion",
    }
    if reading.orientation is None:
        found["orientation"] = "as stored, as Python writes it; what MATLAB wrote needs orientation=4"
    if values.wavelength_m is not None:
        found["wavelength"] = f"{name}: /lambda, in {values.unit}"
    if values.object_pixel_m is not None:
        found["object pixel"] = f"{name}: /dx, in {values.unit}"
    electrons = values.unit == "angstrom" and values.wavelength_m is not None
    return paired(
        ScanDescription(
            layout="ptychoshelves",
            counts=frames,
            positions=Positions(values=values.positions, unit="m"),
            energy_ev=_electron_energy_ev(values.wavelength_m) if electrons else None,  # type: ignore[arg-type]
            wavelength_m=values.wavelength_m,
            object_pixel_m=values.object_pixel_m,
            found=found,
        ),
        file,
    )


def parameters(file: ScanFile) -> tuple[str, ...]:
    """Names that the file with the positions may have, for a scan in this one."""
    stem = file.path.stem
    if not stem.endswith("_dp"):
        return PARAMETERS
    base = stem.removesuffix("_dp").replace("{", "{{").replace("}", "}}")
    return tuple(f"{base}_{name}" for name in PARAMETERS)


def _frames(file: ScanFile, positions: int) -> tuple[RawFrames, str]:
    """The frames, and how their axes lie: that of the frames is as long as there are positions."""
    dataset = file.dataset(FRAMES)
    axes = AXES[0]
    if dataset.ndim == 3 and dataset.shape[0] != positions and dataset.shape[2] == positions:
        axes = AXES[1]
    return frames_at(file, FRAMES, axes=axes), axes


@dataclass(frozen=True, eq=False)
class _Parameters:
    """What a file *_para.hdf5 holds, in metres."""

    positions: Floats
    """(frame, 2), row and column."""
    unit: str
    """"m" or "angstrom", in which it holds them."""
    wavelength_m: float | None
    object_pixel_m: float | None
    as_matlab: bool
    """Whether positions are a row or a column of a matrix: MATLAB knows no arrays of one axis."""

    @classmethod
    def of(cls, file: ScanFile) -> _Parameters:
        """Those in an open file; ScanError names the dataset that is missing or wrong."""
        rows, columns = file.values("/ppY"), file.values("/ppX")
        if rows.size != columns.size or not (np.isfinite(rows).all() and np.isfinite(columns).all()):
            raise ScanError(
                f"{file.path}: /ppY and /ppX hold {rows.size} and {columns.size} numbers; there must be "
                "one finite number in both for each frame."
            )
        positions = np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1).astype(np.float64)
        wavelength, pixel = file.number("/lambda"), file.number("/dx")
        for at, value in (("/lambda", wavelength), ("/dx", pixel)):
            if value is not None:
                require_positive(value, f"{file.path}: {at}")
        unit = _unit(file, positions, wavelength)
        factor = factor_of(unit, LENGTHS, f"{file.path}: /ppX")
        return cls(
            positions=positions * factor,
            unit=unit,
            wavelength_m=None if wavelength is None else wavelength * factor,
            object_pixel_m=None if pixel is None else pixel * factor,
            as_matlab=_as_matlab(file.dataset("/ppX")),
        )


def _as_matlab(dataset: Dataset) -> bool:
    return dataset.ndim == 2 and 1 in dataset.shape and dataset.size > 1


def _unit(file: ScanFile, positions: Floats, wavelength: float | None) -> str:
    """The unit of lengths: as stated, else as they can only be meant."""
    stated = file.unit("/ppX", "")
    if stated:
        return stated
    found = {"m" if np.ptp(positions, axis=0).max(initial=0) < LONGEST_M else "angstrom"}
    if wavelength is not None:
        found.add("m" if wavelength < LONGEST_WAVE_M else "angstrom")
    if len(found) > 1:
        raise ScanError(
            f"{file.path}: positions reach over {np.ptp(positions, axis=0).max():g} and /lambda is "
            f"{wavelength:g}, which are neither both in metres, as for X-rays, nor both in Angstrom, as for "
            "electrons. Write the attribute units of /ppX and /lambda, or correct them."
        )
    return found.pop()


def _electron_energy_ev(wavelength_m: float) -> float:
    """Kinetic energy of an electron of this wavelength."""
    return float(np.hypot(EV_TIMES_M / wavelength_m, ELECTRON_EV) - ELECTRON_EV)
