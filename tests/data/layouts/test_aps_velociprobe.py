import h5py
import numpy as np
import pytest
from layoutkit import BEAM, SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

CHI = 60.0
DETECTOR = "/entry/instrument/detector"
CROP = ScanReading(crop=SIDE)
IN_GAP = 1


def table_of(wrote, *, first=1, rows=3, laser=False):
    """Eight columns of whole numbers, several rows for each trigger, whose mean is where the probe was."""
    triggers = np.repeat(np.arange(first, first + len(wrote.positions_m)), rows)
    y, x = np.repeat(wrote.positions_m, rows, axis=0).T * 1e9
    jitter = np.tile(np.arange(rows) - (rows - 1) // 2, len(wrote.positions_m)) * 40
    table = np.full((len(triggers), 8), 77_777, np.int64)
    table[:, 1] = np.rint(x / np.cos(np.radians(CHI))) + jitter
    table[:, 2 if laser else 5] = (1 if laser else -1) * np.rint(y) - jitter
    table[:, 7] = triggers
    return table


def write(path, wrote, *, each=5, links=3, table=None):
    """A master, its files of so many frames, and the positions."""
    path.parent.mkdir(exist_ok=True)
    stored = wrote.stored(gap=65535).astype(np.uint16)
    for number, first in enumerate(range(0, len(stored), each), start=1):
        with h5py.File(path.with_name(f"fly001_data_{number:06}.h5"), "w") as file:
            file["/entry/data/data"] = stored[first : first + each]
    fields = {
        "beam_center_x": (BEAM[1], "pixel"),
        "beam_center_y": (BEAM[0], "pixel"),
        "detector_distance": (wrote.distance_m, "m"),
        "x_pixel_size": (wrote.detector_pixel_m, "m"),
        "y_pixel_size": (wrote.detector_pixel_m, "m"),
        "detectorSpecific/photon_energy": (wrote.energy_ev, "eV"),
        "detectorSpecific/nimages": (len(stored), None),
        "detectorSpecific/ntrigger": (1, None),
        "detectorSpecific/pixel_mask": (np.where(wrote.bad, IN_GAP, 0).astype(np.uint32), None),
    }
    with h5py.File(path, "w") as file:
        for number in range(1, links + 1):
            link = h5py.ExternalLink(f"fly001_data_{number:06}.h5", "/entry/data/data")
            file[f"/entry/data/data_{number:06}"] = link
        for name, (value, unit) in fields.items():
            file[f"{DETECTOR}/{name}"] = value
            if unit:
                file[f"{DETECTOR}/{name}"].attrs["units"] = np.bytes_(unit)
        file["/entry/sample/goniometer/chi"] = np.full(len(stored), CHI)
        file["/entry/sample/goniometer/chi"].attrs["units"] = np.bytes_("degree")
    table = table_of(wrote) if table is None else table
    np.savetxt(path.with_name("fly001_0.csv"), table, fmt="%d", delimiter=",")
    return path


def on_whole_nanometres(wrote):
    """Positions that the file can hold, in whole numbers: the stage goes twice as far as the probe."""
    wrote.positions_m[:] = (wrote.positions_m * 1e9).round() * 1e-9
    return wrote


@pytest.fixture
def wrote():
    return on_whole_nanometres(truth())


@pytest.mark.parametrize("first", [0, 1, 7])
def test_frames_behind_links_and_the_mean_position_of_each_trigger(tmp_path, wrote, first):
    path = write(tmp_path / "fly001_master.h5", wrote, table=table_of(wrote, first=first))
    scan = require_read(path, wrote, reading=CROP)
    assert (scan.layout, scan.left_out) == ("aps_velociprobe", {})
    assert {each.name for each in scan.others} == {
        "fly001_0.csv",
        *(f"fly001_data_{number:06}.h5" for number in (1, 2, 3)),
    }


def test_what_was_recorded_before_the_first_trigger_is_no_position(tmp_path, wrote):
    table = np.concatenate([np.zeros((2, 8), np.int64), table_of(wrote)])
    path = write(tmp_path / "fly001_master.h5", wrote, table=table)
    require_read(path, wrote, reading=CROP)


def test_the_laser_interferometer_is_asked_for(tmp_path, wrote):
    path = write(tmp_path / "fly001_master.h5", wrote, table=table_of(wrote, laser=True))
    reading = ScanReading(crop=SIDE, layout="aps_velociprobe_laser")
    assert require_read(path, wrote, reading=reading).layout == "aps_velociprobe_laser"


def test_links_that_lead_nowhere_at_the_end_are_of_a_scan_that_ended_early(tmp_path, wrote):
    path = write(tmp_path / "fly001_master.h5", wrote, links=5)
    (tmp_path / "fly001_data_000003.h5").unlink()
    scan = open_scan(path, reading=CROP)
    assert len(scan) == 10
    assert scan.left_out == {"links to files that are not there": 3, "positions without a frame": 2}
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m[:10], atol=1e-12)


def test_a_trigger_without_position_shifts_nothing(tmp_path, wrote):
    table = table_of(wrote)
    path = write(tmp_path / "fly001_master.h5", wrote, table=table[table[:, 7] != 4])
    scan = open_scan(path, reading=CROP)
    kept = np.delete(np.arange(12), 3)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m[kept], atol=1e-12)
    good = scan.good_pixels
    np.testing.assert_array_equal(scan.frames([3])[0, good], wrote.counts[4, 9:25, 21:37][good])
    assert scan.left_out == {"frames without a position": 1}


def test_before_the_first_file_it_is_waited_for(tmp_path, wrote):
    path = write(tmp_path / "fly001_master.h5", wrote)
    for each in tmp_path.glob("fly001_data_*"):
        each.unlink()
    with pytest.raises(NotYetError, match="none of the 3 files that /entry/data links to is there yet"):
        open_scan(path, reading=CROP)


def test_a_file_that_is_still_written_is_waited_for(tmp_path, wrote):
    path = write(tmp_path / "fly001_master.h5", wrote)
    last = tmp_path / "fly001_data_000003.h5"
    last.write_bytes(last.read_bytes()[:-4000])
    with pytest.raises(NotYetError, match="its writer or copy has not finished"):
        open_scan(path, reading=CROP)


def test_zeros_are_what_nobody_told_the_detector(tmp_path, wrote):
    path = write(tmp_path / "fly001_master.h5", wrote)
    with h5py.File(path, "r+") as file:
        for name in ("beam_center_x", "beam_center_y", "detector_distance"):
            file[f"{DETECTOR}/{name}"][()] = 0
    require_read(path, wrote, reading=ScanReading(crop=SIDE, distance_m=1.5), centre=False)


def missing_in_between(path):
    path.with_name("fly001_data_000002.h5").unlink()


def outside(path):
    with h5py.File(path, "r+") as file:
        del file["/entry/data/data_000002"]
        file["/entry/data/data_000002"] = h5py.ExternalLink("/etc/passwd", "/data")


def in_a_circle(path):
    with h5py.File(path, "r+") as file:
        del file["/entry/data/data_000001"]
        file["/entry/data/data_000001"] = h5py.ExternalLink(path.name, "/entry/data/data_000001")


def along_the_beam(path):
    with h5py.File(path, "r+") as file:
        file["/entry/sample/goniometer/chi"][...] = 90.0


def columns(count):
    return lambda path: np.savetxt(path.with_name("fly001_0.csv"), np.ones((12, count)), delimiter=",")


def of_halves(path):
    np.savetxt(path.with_name("fly001_0.csv"), np.full((12, 8), 0.5), delimiter=",")


def without_positions(path):
    path.with_name("fly001_0.csv").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing_in_between, "data_000002 leads to a file that is not there, and those after it are"),
        (outside, "lies in none of the folders"),
        (in_a_circle, "circle of links"),
        (along_the_beam, "the stage does not move across the beam"),
        (columns(6), "has 6 columns; the Velociprobe writes 8"),
        (of_halves, "column 7 holds numbers that are not whole"),
        (without_positions, "no file with its positions beside it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, wrote, change, words):
    path = write(tmp_path / "fly001_master.h5", wrote)
    change(path)
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=CROP)
