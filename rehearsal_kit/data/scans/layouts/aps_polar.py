"""The layout "aps_polar": 4-ID (POLAR) of APS, whose Bluesky master links to frames and positions.

Conventions are those of ptychodus' plugins aps04id_polar_*, which have them from the beamline's own script.
Frames carry a number, NDArrayUniqueId, and belong to trigger number - first number + 1, so that frames that
were dropped shift nothing. Fly scans have a stream of positions, in nm, many for each trigger; trigger 0 is
before the first frame. Step scans have the motors' positions, in µm, one for each frame. All are of the
sample's stage, so the probe moves the other way. Pixels of the Eiger are 75 µm; no file says so.
"""

from __future__ import annotations

import re

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_in
from rehearsal_kit.data.scans.layouts.nexus import beam_centre, told_quantity
from rehearsal_kit.data.scans.layouts.numbered import (
    Numbers,
    means_by_number,
    paired_by_number,
    whole_numbers,
)
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS
from rehearsal_kit.data.scans.reading import ScanReading

EIGER, STREAM = "/entry/externals/eiger", "/entry/externals/pos_stream"
"""Links into the files of the detector and of the positioner, to some group of them."""
DATA = "/entry/data/data"
"""What both have in their files."""
ATTRIBUTES = "/entry/instrument/NDAttributes"
NUMBERS = f"{ATTRIBUTES}/NDArrayUniqueId"
MOTORS = "/entry/instrument/bluesky/metadata/motors"
PRIMARY = "/entry/instrument/bluesky/streams/primary"
ENERGY = "/entry/instrument/bluesky/streams/baseline/mono_energy/value_start"
PIXEL_M = 75e-6
NM, UM = 1e-9, 1e-6
SAMPLE, TRIGGER, X, Y = 1, 2, 3, 4
"""Columns of the stream: a counter that stands still at its end, the trigger, and the stage in nm."""


def recognises(file: ScanFile) -> bool:
    """Whether the file is a master of Bluesky that links to an Eiger detector."""
    return "eiger" in file.names("/entry/externals")


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open master; ScanError names what is missing or wrong."""
    detector = file.behind(EIGER)
    counts = frames_in([(detector, DATA)])
    frames = _numbers(detector, len(counts))
    if "pos_stream" in file.names("/entry/externals"):
        positions, values = _streamed(file.behind(STREAM))
        where = f"{STREAM}: means of each trigger, in nm, sign turned"
    else:
        values, where = _of_motors(file)
        # Each step has a frame, unless some were dropped.
        positions = frames if len(values) == len(frames) else np.arange(1, len(values) + 1)
    return paired_by_number(
        ScanDescription(
            layout="aps_polar",
            counts=counts,
            positions=Positions(values=values, unit="m"),
            energy_ev=told_quantity(file, ENERGY, ENERGIES, default="keV"),
            distance_m=told_quantity(detector, f"{ATTRIBUTES}/DetectorDistance", LENGTHS, default="mm"),
            detector_pixel_m=PIXEL_M,
            centre_px=beam_centre(detector, f"{ATTRIBUTES}/BeamCenterY", f"{ATTRIBUTES}/BeamCenterX"),
            found={
                "frames": f"{detector.path.name}: {DATA}, paired by {NUMBERS}",
                "positions": where,
                "energy": ENERGY,
                "detector pixel": "that of an Eiger",
            },
        ),
        file,
        frames=frames,
        positions=positions,
    )


def _numbers(detector: ScanFile, frames: int) -> Numbers:
    """The trigger that each frame belongs to."""
    if detector.find(NUMBERS) is None:
        raise ScanError(
            f"{detector.path}: there is no {NUMBERS}, without which nobody knows which frames were dropped; "
            "have areaDetector write its attributes."
        )
    numbers = whole_numbers(detector.values(NUMBERS), f"{detector.path}: {NUMBERS}")
    if len(numbers) != frames:
        raise ScanError(
            f"{detector.path}: has {frames} frames and {len(numbers)} numbers of frames in {NUMBERS}; there "
            "must be as many."
        )
    triggers: Numbers = numbers - numbers[0] + 1
    return triggers


def _streamed(file: ScanFile) -> tuple[Numbers, Floats]:
    """Triggers of a stream of positions, and of each the mean (trigger, 2) of the probe, in m."""
    rows = file.values(DATA)
    if rows.ndim != 2 or rows.shape[1] <= Y or len(rows) < 1:
        raise ScanError(
            f"{file.path}: {DATA} is of shape {rows.shape}; a stream of positions has lines of more than {Y} "
            "columns."
        )
    still = np.flatnonzero(np.diff(rows[:, SAMPLE].astype(np.float64)) == 0)
    if len(still):  # what follows was never written
        rows = rows[: still[0] + 1]
    triggers = whole_numbers(rows[:, TRIGGER], f"{file.path}: column {TRIGGER} of {DATA}")
    return means_by_number(triggers, -NM * rows[:, [Y, X]].astype(np.float64))


def _of_motors(file: ScanFile) -> tuple[Floats, str]:
    """Positions (step, 2) of the probe in m by the motors of a step scan, and where they were found."""
    listed = re.findall(r"^\s*-\s*(\S+)", file.text(MOTORS) or "", re.MULTILINE)
    if len(listed) != 2:
        raise ScanError(
            f"{file.path}: {MOTORS} names {listed}; a scan across the beam has two motors, and there is no "
            f"{STREAM} either. Give the master of a scan."
        )
    # The one that is called x; else the first one, as ptychodus has it.
    x, y = listed[::-1] if listed[0].endswith("y") and listed[1].endswith("x") else listed
    axes = [-UM * file.values(f"{PRIMARY}/{name}/value").reshape(-1).astype(np.float64) for name in (y, x)]
    if len(axes[0]) != len(axes[1]):
        raise ScanError(f"{file.path}: {y} has {len(axes[0])} positions and {x} has {len(axes[1])}.")
    return np.stack(axes, axis=1), f"{PRIMARY}: row from {y} and column from {x}, in µm, sign turned"
