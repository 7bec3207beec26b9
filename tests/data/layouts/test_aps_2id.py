import h5py
import numpy as np
import pytest
from layoutkit import SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

TOLD = ScanReading(crop=SIDE, energy_ev=8_000.0, distance_m=1.5, detector_pixel_m=75e-6)


def write(folder, wrote, *, called="fly007_data_{:03}.h5", each=4):
    """A file for each line, those of another scan, and the positions."""
    paths = []
    for line, first in enumerate(range(0, len(wrote.counts), each), start=1):
        paths.append(folder / called.format(line))
        with h5py.File(paths[-1], "w") as file:
            file["/entry/data/data"] = wrote.stored(gap=-1).astype(np.int32)[first : first + each]
    (folder / called.format(1).replace("007", "008")).write_bytes(paths[0].read_bytes())
    np.savetxt(folder / "positions.csv", wrote.positions_m, delimiter=",")
    return paths


@pytest.mark.parametrize("called", ["fly007_data_{:03}.h5", "bnp_fly0007_{:06}.h5"])
def test_any_of_its_lines_gives_the_whole_scan(tmp_path, called):
    wrote = truth()
    scan = require_read(write(tmp_path, wrote, called=called)[1], wrote, reading=TOLD, centre=False)
    assert scan.layout == "aps_2id"


def test_lines_that_are_missing_or_cut_short_shift_nothing(tmp_path):
    wrote = truth()
    paths = write(tmp_path, wrote)
    paths[1].unlink()
    with h5py.File(paths[2], "r+") as file:
        frames = file["/entry/data/data"][:3]
        del file["/entry/data/data"]
        file["/entry/data/data"] = frames
    scan = open_scan(paths[0], reading=TOLD)
    kept = [0, 1, 2, 3, 8, 9, 10]
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m[kept], atol=1e-12)
    assert scan.left_out == {"positions without a frame": 5}


def test_without_positions_it_is_waited_for(tmp_path):
    path = write(tmp_path, truth())[0]
    (tmp_path / "positions.csv").unlink()
    with pytest.raises(NotYetError, match=r"looked for fly\{numbers"):
        open_scan(path, reading=TOLD)


def test_the_table_of_another_beamline_is_refused(tmp_path):
    path = write(tmp_path, truth())[0]
    np.savetxt(tmp_path / "positions.csv", np.ones((12, 8)), delimiter=",")
    with pytest.raises(ScanError, match="has 8 columns; positions are two"):
        open_scan(path, reading=TOLD)
