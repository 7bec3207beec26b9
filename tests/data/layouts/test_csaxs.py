import h5py
import numpy as np
import pytest
from layoutkit import SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

READING = ScanReading(crop=SIDE)


def write(path, wrote, **more):
    """The file of the detector. more: datasets instead of those, None for none."""
    fields = {
        "data/data": wrote.stored(gap=-1).astype(np.int32),
        "instrument/monochromator/energy": wrote.energy_ev / 1e3,
        "instrument/monochromator/distance": -wrote.distance_m * 1e3,
        "instrument/eiger_4/x_pixel_size": 75.0,
        "instrument/eiger_4/y_pixel_size": 75.0,
    }
    with h5py.File(path, "w") as file:
        for name, value in (fields | more).items():
            if value is not None:
                file[f"/entry/{name}"] = value
    return path


def orchestra(path, wrote):
    """Positions of the sample as orchestra writes them, with two lines above them."""
    heading = "DataPoint TotalPoints Target_x Average_x_st_fzp Stdev_x_st_fzp Target_y Average_y_st_fzp"
    rows = [
        (number, len(wrote.positions_m), 0, -x * 1e6, 0.001, 0, -y * 1e6)
        for number, (y, x) in enumerate(wrote.positions_m)
    ]
    np.savetxt(path, rows, header=f"Scan 7, Samroy 1\n{heading}", comments="", fmt="%.9g")


def test_the_sample_moves_against_the_probe_and_the_distance_may_be_negative(tmp_path):
    wrote = truth()
    orchestra(tmp_path / "scan_00007.dat", wrote)
    scan = require_read(write(tmp_path / "run_00007.h5", wrote), wrote, reading=READING, centre=False)
    assert scan.layout == "csaxs"
    assert "Average_y_st_fzp and Average_x_st_fzp, in um, sign turned" in scan.found["positions"]


def test_a_table_without_names_is_x_and_y(tmp_path):
    wrote = truth()
    np.savetxt(tmp_path / "run_00007.txt", -wrote.positions_m[:, ::-1] * 1e6)
    require_read(write(tmp_path / "run_00007.h5", wrote), wrote, reading=READING, centre=False)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"instrument/monochromator/distance": 0.0}, "distance is 0; it must be a number above zero"),
        ({"instrument/eiger_4/y_pixel_size": 50.0}, "only square"),
        ({"instrument/monochromator/energy": [1.0, 2.0]}, "must be one number"),
        ({"data/data": np.zeros((37, 52), np.int32)}, "real counts"),
        ({"data/data": np.zeros((13, 37, 52), np.int32)}, "13 frames and 12 positions"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, more, says):
    wrote = truth()
    orchestra(tmp_path / "scan_00007.dat", wrote)
    path = write(tmp_path / "run_00007.h5", wrote, **more)
    with pytest.raises(ScanError, match=says):
        open_scan(path, reading=READING)


def test_without_positions_it_says_where_they_are_looked_for(tmp_path):
    path = write(tmp_path / "run_00007.h5", truth())
    with pytest.raises(NotYetError, match=r"looked for \{stem\}\.dat.*ScanReading\(positions="):
        open_scan(path, reading=READING)
    np.savetxt(tmp_path / "run_00007.txt", np.zeros((12, 3)))
    with pytest.raises(ScanError, match=r"without names.*Average_y_st_fzp.*or be two columns"):
        open_scan(path, reading=READING)
