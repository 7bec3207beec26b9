import h5py
import numpy as np
import pytest
from layoutkit import SIDE, require_read, truth
from real_data import real_data

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOLD = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)
FRAMES = "/entry/data/data"


def write(path, wrote, *, frames=None, beside="pos235.csv"):
    with h5py.File(path, "w") as file:
        file[FRAMES] = wrote.stored(gap=-1).astype(np.int32) if frames is None else frames
    if beside is not None:
        np.savetxt(path.with_name(beside), wrote.positions_m, delimiter=",")
    return path


@pytest.mark.parametrize(
    "beside", ["pos235.csv", "scan_235_000001_positions.csv", "positions.csv", "scan_235_000001.csv"]
)
def test_positions_in_a_file_beside_it(tmp_path, beside):
    scan = require_read(
        write(tmp_path / "scan_235_000001.h5", truth(), beside=beside), truth(), reading=TOLD, centre=False
    )
    assert scan.layout == "aps_26id"
    assert [each.name for each in scan.others] == [beside]


def test_counts_that_wrapped_around(tmp_path):
    wrote = truth()
    wrote.counts[:, 14:20, 26:32] += 40_000  # in all frames, so that they must not be taken for markers
    stored = wrote.stored(gap=65535).astype(np.uint16).view(np.int16)
    path = write(tmp_path / "scan_235_000001.h5", wrote, frames=stored)
    scan = open_scan(path, reading=TOLD)
    assert stored[0, 15, 28] < 0
    np.testing.assert_array_equal(scan.frames([3])[0, 6:9, 6:9], wrote.counts[3, 15:18, 27:30])


def test_a_file_told_by_a_person_counts_more(tmp_path):
    path = write(tmp_path / "scan_235_000001.h5", truth())
    other = truth(seed=1).positions_m
    np.savetxt(tmp_path / "corrected.csv", other, delimiter=",")
    scan = open_scan(path, reading=ScanReading(**{**vars(TOLD), "positions": "corrected.csv"}))
    np.testing.assert_allclose(scan.positions_m, other)


def test_positions_that_have_not_come_yet_are_waited_for(tmp_path):
    path = write(tmp_path / "scan_235_000001.h5", truth(), beside=None)
    with pytest.raises(NotYetError, match=r"no file with its positions beside it \(looked for"):
        open_scan(path, reading=TOLD)


def test_frames_of_areadetector_alone_tell_no_layout(tmp_path):
    path = write(tmp_path / "frames.h5", truth(), beside=None)
    with pytest.raises(ScanError, match="of no known layout"):
        open_scan(path, reading=TOLD)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (np.zeros((12, 3)), "has 3 columns; positions are two"),
        (np.zeros((11, 2)), "12 frames and 11 positions"),
        (np.full((12, 2), np.nan), "not finite"),
    ],
)
def test_positions_that_do_not_fit_are_refused(tmp_path, table, words):
    path = write(tmp_path / "scan_235_000001.h5", truth())
    np.savetxt(tmp_path / "pos235.csv", table, delimiter=",")
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=TOLD)


def test_a_real_scan(tmp_path):
    folder = real_data("aps26id_ptychonn_samples")
    with np.load(folder / "test235_truncated.npz") as archive:
        frames, positions = archive["reciprocal"], archive["position"]
    with h5py.File(tmp_path / "scan_235_000001.h5", "w") as file:
        file[FRAMES] = frames
    (tmp_path / "pos235.csv").write_bytes((folder / "pos235.csv").read_bytes())
    scan = open_scan(tmp_path / "scan_235_000001.h5", reading=ScanReading(**{**vars(TOLD), "crop": 256}))
    assert (len(scan), scan.frame_shape) == (20, (256, 256))
    np.testing.assert_allclose(scan.positions_m, positions)
    assert scan.left_out == {"positions without a frame": 941}
    assert scan.centre_px == pytest.approx((255, 258), abs=2.5)  # a ring, whose halo is not symmetric
    assert scan.frames([0]).min() >= 0
