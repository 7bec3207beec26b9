"""The layout "aps_26id": the hard X-ray nanoprobe of APS and CNM, 26-ID.

Frames are those of EPICS areaDetector, as PtychoNN and ptychodus ("APS_HXN") read them; the positions of the
probe lie in a text file beside them, a line (y, x) in m for each frame, as PtychoNN's authors keep them.
Counts above 32767 were stored by some detectors as negative ones, which mdw771's
`probe_position_correction_w_ptychonn` unwraps. Geometry is in no file of a scan.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import beside, positions_beside, table_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_at
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES = "/entry/data/data"
POSITIONS = (
    "{stem}_positions.csv",
    "{stem}.csv",
    "pos{numbers[0]}.csv",
    "pos{number}.csv",
    "positions.csv",
)
NAME = re.compile(r"scan_\d+_\d+")
"""What the beamline calls a file without its suffix."""


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames of areaDetector, and the name or the positions beside it tell the rest."""
    frames = file.find(FRAMES)
    if frames is None or getattr(frames, "ndim", 0) != 3:
        return False
    return NAME.fullmatch(file.path.stem) is not None or beside(file, POSITIONS) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names what is missing or wrong."""
    positions, name = positions_yx(file, reading, POSITIONS)
    return paired(
        ScanDescription(
            layout="aps_26id",
            counts=frames_at(file, FRAMES),
            positions=positions,
            negative="wrapped",
            found={"frames": FRAMES, "positions": f"{name}: row and column, in m"},
        ),
        file,
    )


def positions_yx(file: ScanFile, reading: ScanReading, names: Sequence[str]) -> tuple[Positions, str]:
    """Positions in a text file beside a scan, which has two columns, y and x in m, and the name of that."""
    name = positions_beside(file, reading.positions, names)
    values = table_of(file, name)
    if values.shape[1] != 2:
        raise ScanError(
            f"{file.place_of(name)}: has {values.shape[1]} columns; positions are two, y and x in m. If it "
            "holds something else, say in a mapping which columns count."
        )
    return Positions(values=np.ascontiguousarray(values), unit="m"), name
