import h5py
import numpy as np
import pytest
from layoutkit import COLUMNS, ROWS, SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

DETECTOR = "entry_1/instrument_1/detector_1"


def write(path, wrote, **changes):
    """A scan as PtyPy's DiamondNexus reads it; None in changes leaves a field out."""
    frames = wrote.stored(gap=-1).astype(np.int32) + 3
    frames[:, wrote.bad] -= 3
    fields = {
        "data/data": frames,
        "data/y": wrote.positions_m[:, 0],
        "data/x": wrote.positions_m[:, 1],
        "instrument_1/beam_1/energy": np.array([wrote.energy_ev / 1e3]),
        "instrument_1/detector_1/distance": np.array([wrote.distance_m]),
        "instrument_1/detector_1/x_pixel_size": np.array([wrote.detector_pixel_m]),
        "instrument_1/detector_1/darkfield": np.full((2, ROWS, COLUMNS), 3, np.uint16),
    } | changes
    with h5py.File(path, "w") as file:
        for at, value in fields.items():
            if value is not None:
                file[f"entry_1/{at}"] = value
    return path


def test_a_scan_with_energy_in_kev_and_counts_in_the_dark(tmp_path):
    wrote = truth()
    scan = require_read(write(tmp_path / "34.nxs", wrote), wrote, centre=False)
    assert scan.layout == "diamond"


def test_a_raster_whose_lines_are_as_many_as_its_columns(tmp_path):
    wrote, axis = truth(9), np.array([[-1.0], [0.0], [1.0]])
    path = write(
        tmp_path / "34.nxs",
        wrote,
        **{
            "data/data": wrote.stored().reshape(3, 3, ROWS, COLUMNS).astype(np.int32),
            "data/y": axis * 1e-6,
            "data/x": axis * 2e-6,
            "instrument_1/detector_1/darkfield": None,
        },
    )
    with h5py.File(path, "r+") as file:
        file["entry_1/data/x"].attrs["units"] = "m"
    scan = open_scan(path, reading=ScanReading(crop=SIDE))
    np.testing.assert_allclose(scan.positions_m[:4] * 1e6, [(-1, -2), (-1, 0), (-1, 2), (0, -2)])


def test_frames_are_divided_by_the_monitor(tmp_path):
    wrote = truth()
    beam = np.linspace(1.0, 2.0, 12)
    path = write(tmp_path / "34.nxs", wrote, **{"instrument_1/monitor/data": beam[:, None]})
    scan = open_scan(path, reading=ScanReading(crop=SIDE))
    plain = open_scan(write(tmp_path / "35.nxs", wrote), reading=ScanReading(crop=SIDE))
    expected = plain.frames([0, 11]) / (beam[[0, 11]] / np.median(beam))[:, None, None]
    np.testing.assert_allclose(scan.frames([0, 11]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data/x": np.zeros(5)}, r"positions of shapes \(12,\) along the rows and \(5,\)"),
        ({"data/x": np.full(12, np.nan)}, "not finite"),
        ({"instrument_1/beam_1/energy": np.array([8_000.0])}, r"photon energy is 8e\+06 eV, outside"),
        ({"instrument_1/detector_1/distance": None}, "distance None"),
        ({"instrument_1/detector_1/darkfield": np.zeros((4, 4))}, "must be finite numbers of the shape"),
        ({"instrument_1/monitor/data": np.zeros(12)}, "one above zero for each of 12"),
        ({"data/data": h5py.SoftLink("/entry_1/data/data")}, "circle of links"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, words):
    with pytest.raises(ScanError, match=words):
        open_scan(write(tmp_path / "34.nxs", truth(), **changes), reading=ScanReading(crop=SIDE))
