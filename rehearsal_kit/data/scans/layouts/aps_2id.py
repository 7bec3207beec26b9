"""The layout "aps_2id": 2-ID-D, 2-ID-E and the Bionanoprobe of APS, one file for each line of a scan.

A scan is all files beside the given one that are called like it but for the line (fly007_data_001.h5, or
bnp_fly0007_000001.h5), as ptychodus (plugin aps02id_diffraction_file) and PEAR have it. Positions, which the
beamline writes as .mda, are read from a text file of lines (y, x) in m, as for 26-ID, a line for each frame
of lines that are all as long as the longest one: a line that is missing or was cut short shifts nothing.
Geometry is in no file of a scan.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.description import ScanDescription
from rehearsal_kit.data.scans.doors.companions import series_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_in
from rehearsal_kit.data.scans.layouts.aps_26id import FRAMES, positions_yx
from rehearsal_kit.data.scans.layouts.numbered import paired_by_number
from rehearsal_kit.data.scans.reading import ScanReading

NAME = r".*fly\d+_(data_)?(?P<n1>\d+)\.(h5|hdf5)"
POSITIONS = ("fly{numbers[0]}.csv", "bnp_fly{numbers[0]}.csv", "positions.csv")


def recognises(file: ScanFile) -> bool:
    """Whether the file has frames of areaDetector and the name of a line of a fly scan."""
    return getattr(file.find(FRAMES), "ndim", 0) == 3 and bool(series_of(file.path, NAME))


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan that an open file is one line of; ScanError names what is missing or wrong."""
    series = series_of(file.path, NAME)
    if not series:
        raise ScanError(f"{file.path}: is called like no line of a fly scan, flySCAN_LINE.h5.")
    positions, name = positions_yx(file, reading, POSITIONS)
    counts = frames_in((file.other(path.absolute()), FRAMES) for path in series.values())
    longest = max(block.count for block in counts.blocks)
    lines = [number for (number,) in series]
    frames = [
        (line - lines[0]) * longest + np.arange(block.count)
        for line, block in zip(lines, counts.blocks, strict=True)
    ]
    return paired_by_number(
        ScanDescription(
            layout="aps_2id",
            counts=counts,
            positions=positions,
            negative="zero",
            found={
                "frames": f"{FRAMES} of {len(series)} files",
                "positions": f"{name}: row and column, in m",
            },
        ),
        file,
        frames=np.concatenate(frames),
        positions=np.arange(len(positions.values)),
    )
