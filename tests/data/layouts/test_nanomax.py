from dataclasses import replace

import h5py
import numpy as np
import pytest
from layoutkit import SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOLD = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)


def write(path, wrote):
    frames = wrote.stored(gap=-1).astype(np.int32)
    with h5py.File(path.with_name("detector.h5"), "w") as other:
        other["frames"] = frames
    with h5py.File(path, "w") as file:
        file["/entry/measurement/eiger1m/frames"] = h5py.ExternalLink("detector.h5", "/frames")
        file["/entry/measurement/pseudo/x"] = -wrote.positions_m[:, 1] * 1e6
        file["/entry/measurement/pseudo/y"] = -wrote.positions_m[:, 0] * 1e6
    return path


def test_a_scan_with_its_frames_in_another_file(tmp_path):
    wrote = truth()
    path = write(tmp_path / "000012.h5", wrote)
    scan = require_read(path, wrote, reading=TOLD, centre=False)
    assert scan.layout == "nanomax"
    assert [each.name for each in scan.others] == ["detector.h5"]


def test_without_geometry_it_says_what_to_give(tmp_path):
    path = write(tmp_path / "000012.h5", truth())
    with pytest.raises(
        ScanError, match=r"ScanReading\(energy_ev=\.\.\., distance_m=\.\.\., detector_pixel_m"
    ):
        open_scan(path, reading=replace(TOLD, energy_ev=None))
