import h5py
import numpy as np
import pytest
from layoutkit import SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOLD = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)


def write(path, wrote, positions=None):
    with h5py.File(path, "w") as file:
        file["/exchange/data"] = wrote.stored(gap=-1).astype(np.int32)
        file["/exchange/motor_pos"] = wrote.positions_m[:, ::-1] * 1e3 if positions is None else positions
    return path


def test_positions_in_millimetres_with_x_first(tmp_path):
    wrote = truth()
    scan = require_read(write(tmp_path / "cssi.h5", wrote), wrote, reading=TOLD, centre=False)
    assert scan.layout == "aps_cssi"


def test_positions_of_one_axis_are_refused(tmp_path):
    path = write(tmp_path / "cssi.h5", truth(), np.zeros((12, 1)))
    with pytest.raises(ScanError, match=r"of shape \(12, 1\) has no part"):
        open_scan(path, reading=TOLD)
