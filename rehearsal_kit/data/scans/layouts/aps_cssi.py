"""The layout "aps_cssi": 9-ID (CSSI) of APS, frames and positions in the groups of Data Exchange.

Positions are (x, y) in mm, as ptychodus' plugin aps09id_cssi_position_file has them; geometry is in no file.
"""

from __future__ import annotations

from rehearsal_kit.data.scans.description import ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.layouts.mapped import describe_mapped
from rehearsal_kit.data.scans.mapping import FramesAt, PositionsAt, ScanMapping
from rehearsal_kit.data.scans.reading import ScanReading

POSITIONS = "/exchange/motor_pos"
MAPPING = ScanMapping(
    frames=FramesAt(at="/exchange/data"),
    positions=PositionsAt(row=f"{POSITIONS}[:, 1]", column=f"{POSITIONS}[:, 0]", unit="mm"),
)


def recognises(file: ScanFile) -> bool:
    """Whether the file has positions beside the frames of Data Exchange, which tomography has not."""
    return file.find(POSITIONS) is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    return describe_mapped(file, MAPPING, layout="aps_cssi", reading=reading)
