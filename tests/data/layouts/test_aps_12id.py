import h5py
import numpy as np
import pytest
from layoutkit import BEAM, SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.scan_file import MOST_OPEN
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

PIXEL_M = 172e-6
TOLD = ScanReading(crop=SIDE, distance_m=1.5)
ENERGY = "/entry/instrument/NDAttributes/monoE"
ONLY_BEFORE_THE_REST = 99.0


def measured(frames=12, **other):
    """The scan, on a Pilatus."""
    wrote = truth(frames, **other)
    return type(wrote)(wrote.counts, wrote.positions_m, detector_pixel_m=PIXEL_M)


def points(frames, *, each=4):
    """Lines count from 1 and points from 0, as at the beamline."""
    return [(number // each + 1, number % each) for number in range(frames)]


def write(folder, wrote, *, ndim=3, each=4, sample="ZCB_10", skip=()):
    """A file for each point, and the positions of the interferometers during its exposure."""
    stored = wrote.stored(gap=-2).astype(np.int32)
    paths = []
    for number, (line, point) in enumerate(points(len(stored), each=each)):
        path = folder / f"{sample}_4002_{line:05}_{point}.h5"
        paths.append(path)
        if number in skip:
            continue
        with h5py.File(path, "w") as file:
            file["/entry/data/data"] = stored[number] if ndim == 2 else stored[number : number + 1]
            file[ENERGY] = np.array([wrote.energy_ev])
        row, column = wrote.positions_m[number] * 1e9
        table = np.full((3, 4), ONLY_BEFORE_THE_REST)
        table[:, 1] = row + np.array([-30, 10, 20])
        table[:, 2] = -column + np.array([-10, 10, 0])
        np.savetxt(path.with_suffix(".dat"), table, fmt="  %.8e", delimiter="    ")
    return paths


@pytest.mark.parametrize(("ndim", "given"), [(2, 0), (3, 7)])
def test_any_of_its_files_gives_the_whole_scan(tmp_path, ndim, given):
    wrote = measured()
    paths = write(tmp_path, wrote, ndim=ndim)
    write(tmp_path, measured(4, seed=1), sample="ZCB_11")  # another sample in the same folder
    scan = require_read(paths[given], wrote, reading=TOLD, centre=False)
    assert scan.layout == "aps_12id"
    assert len(scan.others) == 2 * 12 - 1


def test_points_that_are_missing_shift_nothing(tmp_path):
    wrote = measured()
    paths = write(tmp_path, wrote, skip=[5])
    paths[2].with_suffix(".dat").unlink()
    scan = open_scan(paths[0], reading=TOLD)
    kept = np.delete(np.arange(12), [2, 5])
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m[kept], atol=1e-12)
    assert scan.left_out == {"frames without a position": 1}
    good = scan.good_pixels
    row, column = np.argwhere(good)[100]
    top, left = (round(each) - SIDE // 2 for each in scan.centre_px)
    np.testing.assert_array_equal(
        scan.frames(range(10))[:, row, column], wrote.counts[kept, top + row, left + column]
    )


def test_more_points_than_files_can_be_open(tmp_path):
    wrote = measured(MOST_OPEN + 10)
    scan = open_scan(write(tmp_path, wrote, each=50)[0], reading=TOLD)
    assert len(scan) == MOST_OPEN + 10
    good, centre = scan.good_pixels, (SIDE // 2, SIDE // 2)
    assert good[centre]
    row, column = map(round, scan.centre_px)
    np.testing.assert_array_equal(
        scan.frames([0, MOST_OPEN + 9])[:, *centre], wrote.counts[[0, -1], row, column]
    )


def test_positions_in_another_folder(tmp_path):
    paths = write(tmp_path, measured(2))
    (tmp_path / "positions").mkdir()
    for path in paths:
        path.with_suffix(".dat").rename(tmp_path / "positions" / f"{path.stem}.dat")
    with pytest.raises(NotYetError, match="none of its 2 points has a file"):
        open_scan(paths[0], reading=TOLD)
    scan = open_scan(paths[0], reading=ScanReading(**{**vars(TOLD), "positions": "positions/{stem}.dat"}))
    np.testing.assert_allclose(scan.positions_m, measured(2).positions_m, atol=1e-12)


def test_points_that_are_no_single_frames_are_refused(tmp_path):
    paths = write(tmp_path, measured(3))
    with h5py.File(paths[1], "r+") as file:
        del file["/entry/data/data"]
        file["/entry/data/data"] = np.zeros((2, 37, 52), np.int32)
    with pytest.raises(ScanError, match="3 files beside it have 4 frames"):
        open_scan(paths[0], reading=TOLD)


def test_positions_of_too_few_columns_are_refused(tmp_path):
    paths = write(tmp_path, measured(3))
    paths[1].with_suffix(".dat").write_text("1 2\n")
    with pytest.raises(ScanError, match="has 2 columns; positions are in columns 1 and 2"):
        open_scan(paths[0], reading=TOLD)


# Prepared by the beamline -------------------------------------------------------------------------------

PROCESSED = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5)


def write_lines(folder, wrote, *, each=4):
    """A file for each line, and the master that says where the beam is."""
    with h5py.File(folder / "ZCB_007_master.h5", "w") as file:
        file.attrs["beam_center_YX"] = BEAM
    paths = []
    for line, first in enumerate(range(0, len(wrote.counts), each), start=1):
        rows = slice(first, first + each)
        table = np.full((each, 4), ONLY_BEFORE_THE_REST)
        table[:, 1], table[:, 2] = wrote.positions_m[rows].T * [[1e9], [-1e9]]
        paths.append(folder / f"ZCB_007_{line:05}.h5")
        with h5py.File(paths[-1], "w") as file:
            file["/dp"] = wrote.stored(gap=-2).astype(np.int32)[rows]
            file["/positions"] = table
    return paths


@pytest.mark.parametrize("given", ["ZCB_007_master.h5", "ZCB_007_00002.h5"])
def test_lines_of_a_scan_by_its_master_or_one_of_them(tmp_path, given):
    wrote = measured()
    write_lines(tmp_path, wrote)
    assert require_read(tmp_path / given, wrote, reading=PROCESSED).layout == "aps_12id_processed"


def test_a_file_that_is_called_otherwise_is_a_scan_by_itself(tmp_path):
    wrote = measured(4)
    line = write_lines(tmp_path, wrote)[0]
    for name in ("scan_006.h5", "scan_007.h5"):
        (tmp_path / name).write_bytes(line.read_bytes())
    assert len(open_scan(tmp_path / "scan_006.h5", reading=PROCESSED)) == 4


def test_a_master_before_its_lines_is_waited_for(tmp_path):
    for path in write_lines(tmp_path, measured()):
        path.unlink()
    with pytest.raises(NotYetError, match=r"there is no line of its scan, ZCB_007_LINE\.h5, yet"):
        open_scan(tmp_path / "ZCB_007_master.h5", reading=PROCESSED)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        ("/positions", np.zeros((3, 4)), r"is of shape \(3, 4\); it must have a line"),
        ("/positions", np.zeros((4, 2)), "more than 2 columns for each of 4 frames"),
        ("/dp", np.zeros((4, 37, 50), np.int32), "hold frames that differ"),
        ("/dp", np.zeros((4, 37), np.int32), "a scan needs real counts"),
    ],
)
def test_lines_that_do_not_fit_are_refused(tmp_path, at, value, words):
    path = write_lines(tmp_path, measured())[1]
    with h5py.File(path, "r+") as file:
        del file[at]
        file[at] = value
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=PROCESSED)
