"""The layout "aps_12id": Ptycho-SAXS at 12-ID of APS as the detector writes it, one file for each point.

A scan is all files beside the given one that are called like it but for the line and the point, the last two
numbers of the name (SAMPLE_SCAN_LINE_POINT.h5). Positions are in a text file called like each of them: rows
are column 1 and columns the negative of column 2, in nm, the mean of all its lines. So read it ptychodus
(plugins aps12id_*) and PEAR. Pixels of the Pilatus are 172 µm; no file says so, nor the distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import companion_name, series_of, table_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_in
from rehearsal_kit.data.scans.frames.raw_frames import AXES
from rehearsal_kit.data.scans.layouts.nexus import told_quantity
from rehearsal_kit.data.scans.layouts.numbered import paired_by_number
from rehearsal_kit.data.scans.quantities import ENERGIES
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/entry/data/data"
ENERGY = "/entry/instrument/NDAttributes/monoE"
NAME = r".+_(?P<n1>\d+)_(?P<n2>\d+)\.(h5|hdf5)"
POSITIONS = "{stem}.dat"
PIXEL_M = 172e-6
NM = 1e-9
ROW, COLUMN = 1, 2
"""Columns of the text files."""


def recognises(file: ScanFile) -> bool:
    """Whether the file holds one frame, has a name of a series and the energy where the beamline has it."""
    frames = file.find(FRAMES)
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    one = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    return one and bool(series_of(file.path, NAME)) and file.find(ENERGY) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan that an open file is one point of; ScanError names what is missing or wrong."""
    series = list(series_of(file.path, NAME).values())
    if not series:
        raise ScanError(f"{file.path}: is called like no point of a scan, SAMPLE_SCAN_LINE_POINT.h5.")
    ndim = file.dataset(FRAMES).ndim
    counts = frames_in(_opened(file, series), axes=AXES[3] if ndim == 2 else AXES[0])
    if len(counts) != len(series):
        raise ScanError(
            f"{file.path}: {len(series)} files beside it have {len(counts)} frames in {FRAMES}; each must be "
            "one point with one frame."
        )
    pattern = reading.positions or POSITIONS
    found = [_position(file, path, pattern) for path in series]
    numbers = np.array([number for number, position in enumerate(found) if position is not None], np.int64)
    if not len(numbers):
        raise NotYetError(
            f"{file.path}: none of its {len(series)} points has a file {pattern!r} with the position beside "
            "it; put them there, or say how they are called: ScanReading(positions=..., roots=...)."
        )
    return paired_by_number(
        ScanDescription(
            layout="aps_12id",
            counts=counts,
            positions=Positions(values=np.stack([each for each in found if each is not None]), unit="m"),
            energy_ev=told_quantity(file, ENERGY, ENERGIES, default="eV"),
            detector_pixel_m=PIXEL_M,
            found={
                "frames": f"{FRAMES} of {len(series)} files",
                "positions": f"{pattern} of each: row is column {ROW}, column is -column {COLUMN}, in nm",
                "energy": ENERGY,
                "detector pixel": "that of a Pilatus",
            },
        ),
        file,
        frames=np.arange(len(series)),
        positions=numbers,
    )


def _opened(file: ScanFile, series: list[Path]) -> Iterator[tuple[ScanFile, str]]:
    """Each file when its turn comes: not all can be open at once."""
    for path in series:
        yield file.other(path.absolute()), FRAMES


def _position(file: ScanFile, path: Path, pattern: str) -> Floats | None:
    """Where the probe was at one point (2,), in m; None if there is no file that says it."""
    name = path.parent.absolute() / companion_name(path, pattern)
    if not file.place_of(name).exists():
        return None
    table = table_of(file, str(name))
    if table.shape[1] <= COLUMN:
        raise ScanError(f"{name}: has {table.shape[1]} columns; positions are in columns {ROW} and {COLUMN}.")
    row, column = table[:, [ROW, COLUMN]].mean(axis=0)
    return np.array([row, -column]) * NM
