import h5py
import numpy as np
import pytest
from labelled import square
from layoutkit import BEAM, DEAD, HC, SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

READING = ScanReading(crop=SIDE)


def write(path, wrote, frames, *, at="points", **more):
    """A file of frames by their places, positions and geometry. more: datasets beside these, or instead."""
    fields = {
        at.strip("/"): wrote.positions_m[:, ::-1].T * 1e6,
        "lambda_nm": HC / wrote.energy_ev * 1e9,
        "z_m": wrote.distance_m,
        "ccd_pixel_um": wrote.detector_pixel_m * 1e6,
    }
    with h5py.File(path, "w") as file:
        for name, value in (fields | frames | more).items():
            if value is not None:
                file[name] = value
    return path


def of_one_module(wrote):
    """Counts float32 of a part of the detector that has no gap, a dead pixel in it."""
    frames = wrote.counts.astype(np.float32)
    frames[:, *DEAD] = 0
    return frames


def processed(wrote):
    """Square roots of counts, DC at the corner, as they are prepared for reconstruction."""
    return {"diffamp": np.fft.ifftshift(np.sqrt(square(wrote)), axes=(1, 2))}


def test_a_processed_scan_is_amplitudes_with_dc_at_the_corner(tmp_path):
    wrote = truth()
    scan = open_scan(write(tmp_path / "scan_7.h5", wrote, processed(wrote)))
    assert (scan.layout, scan.frame_shape) == ("nsls2_hxn", (SIDE, SIDE))
    np.testing.assert_allclose(scan.frames(range(12)), square(wrote), rtol=1e-6)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m, atol=1e-15)
    assert scan.object_pixel_m == pytest.approx(wrote.object_pixel_m)
    assert scan.energy_ev == pytest.approx(8_000)
    assert "orientation=4" in scan.found["orientation"]


def test_a_processed_scan_whose_dc_was_centred_is_seen_to_be_so(tmp_path):
    wrote = truth()
    narrow = square(wrote)
    narrow[:, : SIDE // 4] = narrow[:, -SIDE // 4 :] = 0
    scan = open_scan(write(tmp_path / "scan_7.h5", wrote, {"diffamp": np.sqrt(narrow)}))
    np.testing.assert_allclose(scan.frames([3]), narrow[[3]], rtol=1e-6)
    assert "in the centre" in scan.found["frames"]


def test_motors_beneath_a_turned_sample_move_it_less(tmp_path):
    wrote = truth()
    scan = open_scan(write(tmp_path / "scan_7.h5", wrote, processed(wrote), angle=-60.0))
    wanted = wrote.positions_m * [1, np.sin(np.pi / 3)]
    np.testing.assert_allclose(scan.positions_m, wanted, atol=1e-15)


def test_a_dump_of_a_live_run_is_counts_and_its_positions_know_the_angle(tmp_path):
    wrote = truth()
    frames = {"dp": of_one_module(wrote)}
    path = write(tmp_path / "7_dp.hdf5", wrote, frames, angle=-60.0)
    scan = require_read(path, wrote, reading=READING, centre=False, mask=False)
    assert scan.layout == "nsls2_hxn"


@pytest.mark.parametrize("at", ["/entry/data/data", "/diff_data/merlin1/det_images"])
@pytest.mark.parametrize("energy", [8.0, 8_000.0])
def test_a_raw_scan_of_a_detector_that_marks_its_gap(tmp_path, at, energy):
    wrote = truth()
    frames = {at: wrote.stored(gap=65_535).astype(np.uint16)}
    path = write(
        tmp_path / "scan_7.h5",
        wrote,
        frames,
        at="/scan/scan_positions",
        lambda_nm=None,
        **{"/scan/energy": energy},
    )
    require_read(path, wrote, reading=READING, centre=False)


def test_a_beam_near_the_corner_of_a_detector_is_no_dc_at_the_corner(tmp_path):
    wrote = truth()
    dp = np.pad(of_one_module(wrote), ((0, 0), (0, 60), (0, 60)))[:, 8:, 20:]
    scan = open_scan(write(tmp_path / "7_dp.hdf5", wrote, {"dp": dp}), reading=READING)
    assert scan.centre_px == pytest.approx((BEAM[0] - 8, BEAM[1] - 20), abs=0.5)
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames([3])[:, good], square(wrote)[[3]][:, good])


def test_a_file_for_matlab_has_counts_if_they_are_whole(tmp_path):
    wrote = truth()
    more = {"lambda_nm": None, "z_m": None, "ccd_pixel_um": None}
    more |= {"energy": 8.0, "det_dist": 1.5e6, "det_pixel_size": [[75.0]]}
    path = write(tmp_path / "a.mat", wrote, {"det_data": of_one_module(wrote)}, at="/pos_xy", **more)
    require_read(path, wrote, reading=READING, centre=False, mask=False)
    path = write(tmp_path / "b.mat", wrote, {"det_data": np.sqrt(of_one_module(wrote))}, at="/pos_xy", **more)
    with pytest.raises(ScanError, match=r"not whole.*mapping"):
        open_scan(path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"points": None}, "there is no dataset /points"),
        ({"points": np.zeros((12, 2))}, r"/points is of shape \(12, 2\); it must be \(2, frame\)"),
        ({"points": np.zeros((2, 11))}, "12 frames and 11 positions"),
        ({"lambda_nm": 0.0}, "/lambda_nm is 0; it must be a number above zero"),
        ({"lambda_nm": 155.0}, "object pixel|wavelength"),
        ({"lambda_nm": None, "energy": 700.0}, "/energy is 700 ; an energy is 1 to 200 in keV"),
        ({"diffamp": np.zeros((12, 16))}, r"/diffamp is float64 of shape \(12, 16\)"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, more, says):
    wrote = truth()
    path = write(tmp_path / "scan_7.h5", wrote, processed(wrote), **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path)
