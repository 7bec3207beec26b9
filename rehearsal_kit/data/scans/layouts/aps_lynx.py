"""The layout "aps_lynx": LYNX at APS 31-ID, with its Eiger detector.

Geometry stands in attributes of the frames. Positions are in a text file whose second line names its columns,
written by Orchestra or by softGlueZynq. They are in µm and of the sample, so the probe moves the other way:
so read them tike (`read_aps_lynx`, whose description says nm and whose code µm), ptychodus and PEAR. Pixels
between the modules hold 4095 (tike).
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import Table, positions_beside, read_table
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import Finder
from rehearsal_kit.data.scans.layouts.nexus import beam_centre
from rehearsal_kit.data.scans.layouts.numbered import means_by_number, paired_by_number, whole_numbers
from rehearsal_kit.data.scans.mapping import NumberAt
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/entry/data/eiger_4"
GAP = 4095
POSITIONS = ("scan_{numbers[0]}.dat", "{stem}.dat", "{stem}_positions.dat", "scan_{number}.dat")
ROW = ("Average_y_st_fzp", "y_st_fzp")
COLUMN = ("Average_x_st_fzp", "x_st_fzp")
NUMBER = ("Detector_Count", "DataPoint")
"""Columns by their names: the number of the frame is the detector's count where there is one."""
UM = 1e-6


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames where LYNX has them."""
    return file.find(FRAMES) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names what is missing or wrong."""
    finder = Finder(file, reading)
    counts = frames_at(file, FRAMES)
    name = positions_beside(file, reading.positions, POSITIONS)
    table, where = read_table(file, name), str(file.place_of(name))
    values = -UM * np.stack([_column(table, ROW, where), _column(table, COLUMN, where)], axis=1)
    numbers = whole_numbers(_column(table, NUMBER, where), where)
    numbers, values = means_by_number(numbers, values)
    finder.found.update({"frames": FRAMES, "positions": f"{name}, in µm, sign turned", "gap": f"{GAP}"})
    return paired_by_number(
        ScanDescription(
            layout="aps_lynx",
            counts=counts,
            positions=Positions(values=values, unit="m"),
            gap=GAP,
            energy_ev=finder.number("energy", _attribute("Photon_energy_kev", "keV"), ENERGIES),
            distance_m=finder.number("distance", _attribute("Detector_distance_m", "m"), LENGTHS),
            detector_pixel_m=finder.number("detector pixel", _attribute("Pixel_size", "m"), LENGTHS),
            centre_px=beam_centre(file, f"{FRAMES}@Center_y_pixel", f"{FRAMES}@Center_x_pixel"),
            found=finder.found,
        ),
        file,
        frames=np.arange(len(counts)),
        positions=numbers - numbers[0],  # they count from 0 or from 1
    )


def _attribute(name: str, unit: str) -> NumberAt:
    return NumberAt(at=f"{FRAMES}@{name}", unit=unit)


def _column(table: Table, names: tuple[str, ...], where: str) -> np.ndarray:
    """The column that has one of these names."""
    for name in names:
        if name in table.names:
            return table.values[:, table.names.index(name)]
    raise ScanError(
        f"{where}: has no column {' or '.join(names)}, but {', '.join(table.names) or 'none with a name'}; "
        "give the file that the beamline wrote, with the line that names its columns."
    )
