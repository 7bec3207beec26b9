"""The layout "aps_velociprobe": the Velociprobe of APS, with an Eiger whose master links to its frames.

Positions are in a text file of eight columns of whole numbers in nm (samz, samx, samy, zpx, zpy, encoder y,
encoder x, trigger), several lines for each frame, as tike (`read_aps_velociprobe`) and ptychodus (plugin
aps33id_velociprobe) describe it. x is column 1, which lies on the rotation stage and is foreshortened by the
cosine of its angle chi, and y the negative of column 5, the encoder. "aps_velociprobe_laser" takes y from
column 2, the laser interferometer, which not all scans have; nothing in a file tells which one is right, so
it is never recognised.

Links stand in the master before there are frames; where a scan was ended early the last of them lead nowhere.
"""

from __future__ import annotations

import re

import numpy as np

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.description import Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import positions_beside, table_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import Finder
from rehearsal_kit.data.scans.layouts.nexus import beam_centre, square_pixel_m, told_quantity
from rehearsal_kit.data.scans.layouts.numbered import (
    counted_from_first,
    means_by_number,
    paired_by_number,
    whole_numbers,
)
from rehearsal_kit.data.scans.mapping import MaskAt
from rehearsal_kit.data.scans.quantities import ANGLES, ENERGIES, LENGTHS, factor_of
from rehearsal_kit.data.scans.reading import ScanReading

DATA = "/entry/data"
DETECTOR = "/entry/instrument/detector"
SPECIFIC = f"{DETECTOR}/detectorSpecific"
CHI = "/entry/sample/goniometer/chi"
MASK = MaskAt(at=(f"{SPECIFIC}/pixel_mask", f"{DETECTOR}/pixel_mask"), bits=0xFFFF)
POSITIONS = (
    "{base}.csv",
    "{base}_0.csv",
    "{base}_positions.csv",
    "{base}.txt",
    "{base}_0.txt",
    "{stem}.csv",
    "positions.csv",
)
COLUMNS = 8
X, LASER_Y, ENCODER_Y, TRIGGER = 1, 2, 5, 7
NM = 1e-9
LEAST_COSINE = 1e-3
"""Seen along its own axis, the stage does not move across the beam."""


def recognises(file: ScanFile) -> bool:
    """Whether the file is the master of an Eiger detector."""
    return bool(_links(file)) and file.find(SPECIFIC) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open master, y by the encoder; ScanError names what is missing or wrong."""
    return _described(file, reading, y_column=ENCODER_Y)


def describe_laser(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The same with y by the laser interferometer."""
    return _described(file, reading, y_column=LASER_Y)


def _described(file: ScanFile, reading: ScanReading, *, y_column: int) -> ScanDescription:
    finder = Finder(file, reading)
    places, dangling = _frames(file)
    counts = frames_at(file, *places)
    finder.found["frames"] = places[0] if len(places) == 1 else f"{places[0]} to {places[-1]}"
    triggers, values = _positions(finder, y_column=y_column)
    pixel, shape = square_pixel_m(file, DETECTOR), counts.stored_shape
    return paired_by_number(
        ScanDescription(
            layout="aps_velociprobe",
            counts=counts,
            positions=Positions(values=values, unit="m"),
            bad=finder.mask(MASK, shape),
            energy_ev=told_quantity(file, f"{SPECIFIC}/photon_energy", ENERGIES, default="eV"),
            distance_m=told_quantity(file, f"{DETECTOR}/detector_distance", LENGTHS, default="m"),
            detector_pixel_m=pixel,
            centre_px=beam_centre(
                file, f"{DETECTOR}/beam_center_y", f"{DETECTOR}/beam_center_x", pixel_m=pixel
            ),
            left_out={"links to files that are not there": dangling} if dangling else {},
            found=finder.found,
        ),
        file,
        frames=np.arange(len(counts)),
        positions=counted_from_first(triggers, _expected(file, len(counts))),
    )


def _links(file: ScanFile) -> list[str]:
    return [f"{DATA}/{name}" for name in file.names(DATA) if re.fullmatch(r"data_\d+", name)]


def _frames(file: ScanFile) -> tuple[list[str], int]:
    """Datasets of frames, and how many links after the last of them lead nowhere."""
    places = _links(file)
    there = [not file.dangles(at) for at in places]
    if not any(there):
        raise NotYetError(
            f"{file.path}: none of the {len(places)} files that {DATA} links to is there yet, or they were "
            "left behind when it was copied."
        )
    count = there.index(False) if False in there else len(there)
    if any(there[count:]):
        raise ScanError(
            f"{file.path}: {places[count]} leads to a file that is not there, and those after it are; copy "
            "that one, too, else frames and positions do not belong together."
        )
    return places[:count], len(places) - count


def _expected(file: ScanFile, frames: int) -> int:
    """Frames that were to be measured: of each trigger so many."""
    told = [file.number(f"{SPECIFIC}/{name}") for name in ("nimages", "ntrigger")]
    return (
        max(frames, round(np.prod([each for each in told if each is not None])))
        if None not in told
        else frames
    )


def _positions(finder: Finder, *, y_column: int) -> tuple[np.ndarray, np.ndarray]:
    """Trigger numbers, and of each the mean position (trigger, 2), row and column, in m."""
    file = finder.file
    name = positions_beside(file, finder.reading.positions, POSITIONS)
    table = table_of(file, name)
    if table.shape[1] != COLUMNS:
        raise ScanError(
            f"{file.place_of(name)}: has {table.shape[1]} columns; the Velociprobe writes {COLUMNS}. If this "
            "is the scan of another beamline, say in a mapping where its fields lie."
        )
    sign = -1 if y_column == ENCODER_Y else 1
    moved = np.stack([sign * table[:, y_column], table[:, X] * _cosine(file)], axis=1) * NM
    triggers = whole_numbers(table[:, TRIGGER], f"{file.place_of(name)}: column {TRIGGER}")
    finder.found["positions"] = (
        f"{name}: y from column {y_column}{', sign turned' if sign < 0 else ''}, x from column {X} times "
        f"the cosine of {CHI}, in nm, means of each trigger in column {TRIGGER}"
    )
    return means_by_number(triggers, moved)


def _cosine(file: ScanFile) -> float:
    """How much of the stage's way is across the beam: of its angle at the first frame."""
    if file.find(CHI) is None:
        return 1.0
    angles = file.values(CHI).reshape(-1)
    factor = factor_of(file.unit(CHI, "degree"), ANGLES, f"{file.path}: {CHI}")
    cosine = float(np.cos(angles[0] * factor)) if angles.size else np.nan
    if not abs(cosine) >= LEAST_COSINE:
        raise ScanError(
            f"{file.path}: {CHI} is {angles[:3]}; at this angle the stage does not move across the beam. "
            "Correct it in the file."
        )
    return cosine
