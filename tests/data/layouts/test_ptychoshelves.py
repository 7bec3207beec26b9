from dataclasses import replace

import h5py
import numpy as np
import pytest
from labelled import square
from layoutkit import BEAM, HC, SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOLD = ScanReading(crop=SIDE, distance_m=1.5, detector_pixel_m=75e-6)


def write(folder, wrote, *, dp=None, unit=1.0, matlab=False, **more):
    """A pair of files. unit: metres in the unit of lengths. more: datasets of the second one."""
    path = folder / "data_roi0_dp.hdf5"
    dp = wrote.stored(gap=-1).astype(np.int32) if dp is None else dp
    with h5py.File(path, "w") as file:
        file["dp"] = dp.swapaxes(1, 2) if matlab else dp
    shape = (1, -1) if matlab else (-1,)
    fields = {
        "ppX": wrote.positions_m[:, 1].reshape(shape) / unit,
        "ppY": wrote.positions_m[:, 0].reshape(shape) / unit,
        "lambda": HC / wrote.energy_ev / unit,
    }
    with h5py.File(folder / "data_roi0_para.hdf5", "w") as file:
        for name, value in (fields | more).items():
            if value is not None:
                file[name] = value
    return path


def test_a_pair_of_files_with_lengths_in_metres(tmp_path):
    wrote = truth()
    scan = require_read(write(tmp_path, wrote), wrote, reading=TOLD, centre=False)
    assert scan.layout == "ptychoshelves"
    assert [each.name for each in scan.others] == ["data_roi0_para.hdf5"]
    assert "in m" in scan.found["positions"]
    assert "orientation=4" in scan.found["orientation"]


def test_what_matlab_wrote_is_refused_until_somebody_says_how_frames_lie(tmp_path):
    wrote = truth()
    path = write(tmp_path, wrote, matlab=True)
    with pytest.raises(ScanError, match=r"data_roi0_para.hdf5 .*MATLAB.*orientation=4\).*orientation=0\)"):
        open_scan(path, reading=TOLD)
    scan = open_scan(path, reading=replace(TOLD, orientation=4, centre=BEAM[::-1]))
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames(range(12))[:, good], square(wrote)[:, good])
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-12)


def test_electrons_have_angstrom_and_an_object_pixel_instead_of_a_distance(tmp_path):
    wave, pixel, wrote = 1.96875e-12, 0.4e-10, truth()
    wrote = replace(wrote, positions_m=wrote.positions_m / 1e3)  # 2 nm to each side
    path = write(tmp_path, wrote, dp=square(wrote), unit=1e-10, **{"lambda": wave * 1e10, "dx": pixel * 1e10})
    scan = open_scan(path)
    assert scan.energy_ev == pytest.approx(300e3, rel=1e-3)
    assert (scan.object_pixel_m, scan.distance_m) == (pytest.approx(pixel), None)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-18)
    assert "angstrom" in scan.found["positions"]
    # Half of the frame belongs to pixels that are twice as large.
    assert open_scan(path, reading=ScanReading(crop=8)).object_pixel_m == pytest.approx(2 * pixel)
    path.with_name("data_roi0_para.hdf5").unlink()
    path = write(tmp_path, wrote, dp=square(wrote), unit=1e-10, **{"lambda": None})
    assert open_scan(path, reading=ScanReading(object_pixel_m=pixel)).object_pixel_m == pytest.approx(pixel)


def test_frames_may_be_the_last_axis(tmp_path):
    wrote = truth()
    dp = np.moveaxis(square(wrote), 0, -1)
    scan = open_scan(write(tmp_path, wrote, dp=dp), reading=TOLD)
    np.testing.assert_array_equal(scan.frames([0, 11]), square(wrote)[[0, 11]])
    assert "row column frame" in scan.found["frames"]


def test_dp_alone_is_of_several_layouts_until_somebody_says_of_which(tmp_path):
    wrote = truth()
    path = write(tmp_path, wrote)
    alone = path.rename(tmp_path / "0042.h5")
    with pytest.raises(ScanError, match=r"several layouts \(.*ptychoshelves.*nsls2_hxn.*layout="):
        open_scan(alone, reading=TOLD)
    named = replace(TOLD, positions="data_roi0_para.hdf5")
    assert open_scan(alone, "ptychoshelves", reading=named).layout == "ptychoshelves"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"ppX": None}, "there is no dataset /ppX"),
        ({"ppX": np.zeros(11)}, "/ppY and /ppX hold 12 and 11 numbers"),
        ({"ppX": np.full(12, np.nan)}, "one finite number"),
        ({"ppX": np.zeros(11), "ppY": np.zeros(11)}, "12 frames and 11 positions"),
        ({"ppX": np.arange(12.0)}, "neither both in metres"),
        ({"lambda": -1e-10}, "/lambda is -1e-10; it must be a number above zero"),
        ({"lambda": [1e-10, 2e-10]}, "it must be one number"),
        ({"dp": np.zeros((12, 5), np.uint16)}, r"/dp is uint16 of shape \(12, 5\)"),
    ],
)
def test_wrong_pairs_say_what_is_wrong(tmp_path, more, says):
    path = write(tmp_path, truth(), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=TOLD)


def test_positions_that_are_not_there_yet_are_waited_for(tmp_path):
    path = write(tmp_path, truth())
    (tmp_path / "data_roi0_para.hdf5").unlink()
    (tmp_path / "para.h5").touch()  # of another scan
    with pytest.raises(NotYetError, match=r"no file with its positions .*data_roi0_para\.hdf5"):
        open_scan(path, "ptychoshelves", reading=TOLD)
