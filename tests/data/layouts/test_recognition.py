import h5py
import numpy as np
import pytest

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.doors.scan_file import opened_scan
from rehearsal_kit.data.scans.layouts.registry import LAYOUTS
from rehearsal_kit.data.scans.opening import described, open_scan
from rehearsal_kit.data.scans.reading import ScanReading


def test_a_file_that_may_be_of_several_layouts_is_refused_unless_one_is_named(tmp_path):
    path = tmp_path / "frames.h5"
    with h5py.File(path, "w") as file:
        file["/entry/data/data"] = np.ones((3, 8, 8), np.uint16)
        file["/entry/measurement/pseudo/x"] = np.zeros(3)
        file["/entry/measurement/pseudo/y"] = np.zeros(3)
    np.savetxt(tmp_path / "positions.csv", np.zeros((3, 2)), delimiter=",")
    with pytest.raises(
        ScanError, match=r"may be of several layouts \(nanomax, which .*aps_26id, which .*layout="
    ):
        open_scan(path)
    with opened_scan(path) as file:
        assert described(file, ScanReading(layout="aps_26id")).layout == "aps_26id"


def test_layouts_that_are_meant_instead_of_others_name_known_ones():
    assert {name for layout in LAYOUTS.values() for name in layout.instead_of} <= set(LAYOUTS)


def test_a_file_of_no_known_layout_is_told_which_are_known(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["counts"] = np.ones((3, 8, 8), np.uint16)
    with pytest.raises(ScanError) as raised:
        open_scan(path)
    assert all(name in str(raised.value) for name in LAYOUTS)
