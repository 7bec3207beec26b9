"""The layout "nanomax": scans of NanoMAX at MAX IV, as its acquisition software Contrast writes them.

The positions are those of the sample's stage in µm, so the probe moves the other way; geometry is in no file
of a scan (PtyPy's `NanomaxContrast` takes it from its settings, too).
"""

from __future__ import annotations

from rehearsal_kit.data.scans.description import ScanDescription
from rehearsal_kit.data.scans.doors.scan_file import ScanFile
from rehearsal_kit.data.scans.layouts.mapped import describe_mapped
from rehearsal_kit.data.scans.mapping import FramesAt, MaskAt, PositionsAt, ScanMapping
from rehearsal_kit.data.scans.reading import ScanReading

MEASUREMENT = "/entry/measurement"
FRAMES = (f"{MEASUREMENT}/eiger1m/frames", f"{MEASUREMENT}/eiger500k/frames", f"{MEASUREMENT}/*/frames")

MAPPING = ScanMapping(
    frames=FramesAt(at=FRAMES),
    positions=PositionsAt(
        row=(f"{MEASUREMENT}/pseudo/y",),
        column=(f"{MEASUREMENT}/pseudo/x",),
        unit="um",
        row_sign=-1,
        column_sign=-1,
    ),
    mask=MaskAt(at=("/entry/instrument/detector/pixel_mask",), bits=0xFFFF),
)


def recognises(file: ScanFile) -> bool:
    """Whether the file has the stage's positions where Contrast writes them."""
    return file.find(f"{MEASUREMENT}/pseudo/x") is not None


def describe(file: ScanFile, reading: ScanReading) -> ScanDescription:
    """The scan in an open file; ScanError names the dataset that is missing or wrong."""
    return describe_mapped(file, MAPPING, layout="nanomax", reading=reading)
