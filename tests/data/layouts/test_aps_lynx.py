import h5py
import numpy as np
import pytest
from layoutkit import BEAM, SIDE, require_read, truth

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

CROP = ScanReading(crop=SIDE)
ORCHESTRA = (
    "DataPoint TotalPoints Target_x Average_x_st_fzp Stdev_x_st_fzp Target_y Average_y_st_fzp Stdev_y_st_fzp"
)
RAW = "DataPoint x_st_fzp y_st_fzp ckUser_Clk_Count Detector_Count"
PROCESSED = "Detector_Count Average_x_st_fzp Stdev_x_st_fzp Average_y_st_fzp Stdev_y_st_fzp"


def orchestra(wrote):
    """One line for each frame."""
    row, column = -wrote.positions_m.T * 1e6
    numbers, other = np.arange(len(row)), np.full(len(row), 9.0)
    return ORCHESTRA, np.stack([numbers, other, other, column, other, other, row, other], axis=1)


def raw(wrote):
    """Four lines for each frame, counted from 1."""
    row, column = np.repeat(-wrote.positions_m, 4, axis=0).T * 1e6
    jitter = np.tile([-0.02, 0.01, 0.03, -0.02], len(wrote.positions_m))
    numbers = np.arange(len(row))
    return RAW, np.stack([numbers, column + jitter, row - jitter, numbers * 50, numbers // 4 + 1], axis=1)


def processed(wrote):
    row, column = -wrote.positions_m.T * 1e6
    numbers, other = np.arange(len(row)), np.full(len(row), 9.0)
    return PROCESSED, np.stack([numbers, column, other, row, other], axis=1)


def write(path, wrote, positions=orchestra):
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("/entry/data/eiger_4", data=wrote.stored(gap=4095).astype(np.uint16))
        frames.attrs["Center_x_pixel"] = np.array([BEAM[1]])
        frames.attrs["Center_y_pixel"] = np.array([BEAM[0]])
        frames.attrs["Detector_distance_m"] = wrote.distance_m
        frames.attrs["Photon_energy_kev"] = wrote.energy_ev / 1e3
        frames.attrs["Pixel_size"] = np.array([wrote.detector_pixel_m])
    heading, table = positions(wrote)
    with path.with_name("scan_00042.dat").open("w") as stream:
        stream.write(f"LYNX_scan 42, S 0.05\n{heading}\n")
        np.savetxt(stream, table, fmt="%.6f")
    return path


@pytest.mark.parametrize("positions", [orchestra, raw, processed])
def test_a_gap_that_could_be_counts_and_positions_by_the_names_of_columns(tmp_path, positions):
    wrote = truth()
    scan = require_read(write(tmp_path / "run_00042_000000000000.h5", wrote, positions), wrote, reading=CROP)
    assert scan.layout == "aps_lynx"


def test_a_point_that_was_left_out_shifts_nothing(tmp_path):
    wrote = truth()
    path = write(
        tmp_path / "run_00042_000000000000.h5",
        wrote,
        lambda wrote: (PROCESSED, np.delete(processed(wrote)[1], 5, axis=0)),
    )
    scan = open_scan(path, reading=CROP)
    np.testing.assert_allclose(scan.positions_m, np.delete(wrote.positions_m, 5, axis=0), atol=1e-12)
    assert scan.left_out == {"frames without a position": 1}


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("1 2 3 4 5 6 7 8 9", r"of \[8, 9\] columns"),
        ("a b c d e f g h", "has no column Average_y_st_fzp or y_st_fzp, but a, b"),
        ("some words", "but none with a name"),
    ],
)
def test_a_table_that_does_not_name_its_columns_is_refused(tmp_path, heading, words):
    path = write(
        tmp_path / "run_00042_000000000000.h5", truth(), lambda wrote: (heading, orchestra(wrote)[1])
    )
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=CROP)
