"""The layout "aps_12id_processed": Ptycho-SAXS at 12-ID of APS as the beamline prepares it.

A master and a file for each line of the scan lie beside each other, SAMPLE_SCAN_master.h5 and
SAMPLE_SCAN_LINE.h5, and any of them can be given; a file that is called otherwise is a scan by itself. Lines
have frames in /dp and a position for each in /positions: rows are column 1 and columns the negative of column
2, in nm, as ptychodus (plugin aps12id_processed_file) and PEAR read them. The master has the place of the
beam. Pixels of the Pilatus are 172 µm; no file says so.
"""

from __future__ import annotations

import numpy as np

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.description import Floats, Positions, ScanDescription
from rehearsal_kit.data.scans.doors.companions import series_of
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.frames.frame_search import frames_in
from rehearsal_kit.data.scans.layouts.mapped import paired
from rehearsal_kit.data.scans.reading import ScanReading

FRAMES, POSITIONS = "/dp", "/positions"
BEAM = "beam_center_YX"
MASTER = "_master"
NAME = r".+_\d+_(?P<n1>\d+)\.(h5|hdf5)"
PIXEL_M = 172e-6
NM = 1e-9
ROW, COLUMN = 1, 2


def recognises(file: ScanFile) -> bool:
    """Whether the file is a line with frames and positions, or the master that says where the beam is."""
    line = file.find(FRAMES) is not None and file.find(POSITIONS) is not None
    return line or (file.path.stem.endswith(MASTER) and file.attribute("/", BEAM) is not None)


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan that an open file belongs to; ScanError names what is missing or wrong."""
    prefix = file.path.stem.removesuffix(MASTER)
    if prefix == file.path.stem:
        prefix = prefix.rpartition("_")[0]
    lines = list(series_of(file.path.with_name(f"{prefix}_0{file.path.suffix}"), NAME).values())
    if not lines and file.find(FRAMES) is not None:
        lines = [file.path]
    if not lines:
        raise NotYetError(f"{file.path}: there is no line of its scan, {prefix}_LINE{file.path.suffix}, yet.")
    counts = frames_in([(file.other(path.absolute()), FRAMES) for path in lines])
    values = [
        _positions(file.other(path.absolute()), block.count)
        for path, block in zip(lines, counts.blocks, strict=True)
    ]
    master = file.path.with_name(f"{prefix}{MASTER}{file.path.suffix}")
    return paired(
        ScanDescription(
            layout="aps_12id_processed",
            counts=counts,
            positions=Positions(values=np.concatenate(values), unit="m"),
            detector_pixel_m=PIXEL_M,
            centre_px=_beam(file.other(master.absolute())) if master.exists() else None,
            found={
                "frames": f"{FRAMES} of {len(lines)} files",
                "positions": f"{POSITIONS} of each: row is column {ROW}, column is -column {COLUMN}, in nm",
                "detector pixel": "that of a Pilatus",
            },
        ),
        file,
    )


def _positions(line: ScanFile, frames: int) -> Floats:
    """Where the probe was at the frames of one line (frame, 2), in m."""
    values = line.values(POSITIONS).astype(np.float64)
    if values.ndim != 2 or values.shape[1] <= COLUMN or len(values) < frames:
        raise ScanError(
            f"{line.path}: {POSITIONS} is of shape {values.shape}; it must have a line of more than {COLUMN} "
            f"columns for each of {frames} frames."
        )
    return np.stack([values[:frames, ROW], -values[:frames, COLUMN]], axis=1) * NM


def _beam(master: ScanFile) -> tuple[float, float] | None:
    """Where the master says that the beam hits, row and column."""
    told = master.attribute("/", BEAM)
    if told is None:
        return None
    centre = np.asarray(told).reshape(-1)
    if centre.shape != (2,) or centre.dtype.kind not in "iuf":
        raise ScanError(f"{master.path}: the attribute {BEAM} is {told}; it must be row and column.")
    return float(centre[0]), float(centre[1])
