"""The layout "csaxs": scans of cSAXS at PSI, with the positions in a text file beside them.

Frames, energy in keV, distance in mm (negative where the detector counts it so) and pixels in µm lie in the
file of the detector; "orchestra", which moves the stages, writes positions in µm. They are those of the
sample, and PtychoShelves turns them round (`ptycho_adjust_positions.m`), so the probe moves the other way.
"""

from __future__ import annotations

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import Table, positions_beside, read_table
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.layouts.nexus import square_pixel_m
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS, factor_of, require_positive
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/entry/data/data"
SOURCE = "/entry/instrument/monochromator"
DETECTOR = "/entry/instrument/eiger_4"
POSITIONS = ("{stem}.dat", "{stem}.txt", "scan_{number}.dat", "scan_{numbers[0]}.dat")
COLUMNS = (("Average_y_st_fzp", "Average_x_st_fzp"), ("Average_y", "Average_x"))
"""Names of the columns with positions, row and column; the first pair that is there counts."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has a monochromator and a detector as those of cSAXS are called."""
    return all(file.find(at) is not None for at in (FRAMES, f"{SOURCE}/energy", DETECTOR))


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    name = positions_beside(file, reading.positions, POSITIONS)
    positions, columns = _positions(file, name)
    return paired(
        ScanDescription(
            layout="csaxs",
            counts=frames_at(file, FRAMES),
            positions=Positions(values=positions, unit="m"),
            energy_ev=file.quantity(f"{SOURCE}/energy", ENERGIES, default="keV"),
            distance_m=_distance_m(file),
            detector_pixel_m=square_pixel_m(file, DETECTOR, default="um"),
            found={
                "frames": FRAMES,
                "positions": f"{name}: {columns}, in um, sign turned",
                "energy": f"{SOURCE}/energy",
                "distance": f"{SOURCE}/distance, its sign left out",
                "detector pixel": f"{DETECTOR}/x_pixel_size",
            },
        ),
        file,
    )


def _distance_m(file: ScanFile) -> float | None:
    at = f"{SOURCE}/distance"
    value = file.number(at)
    if value is None:
        return None
    where = f"{file.path}: {at}"
    return require_positive(abs(value), where) * factor_of(file.unit(at, "mm"), LENGTHS, where)


def _positions(file: ScanFile, name: str) -> tuple[Floats, str]:
    """Displacement of the probe (frame, 2), m, and the columns that it follows from."""
    table: Table = read_table(file, name)
    for pair in COLUMNS:
        if set(pair) <= set(table.names):
            places = [table.names.index(each) for each in pair]
            return -table.values[:, places] * LENGTHS["um"], " and ".join(pair)
    if table.values.shape[1] != 2:
        raise ScanError(
            f"{file.path.with_name(name)}: has the columns {', '.join(table.names) or '(without names)'}; "
            f"positions must be in {' and '.join(COLUMNS[0])}, or be two columns, x and y."
        )
    return -table.values[:, ::-1] * LENGTHS["um"], "columns y and x"
