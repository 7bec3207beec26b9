import h5py
import numpy as np
import pytest
from layoutkit import BEAM, SIDE, require_read, truth

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.reading import ScanReading

CROP = ScanReading(crop=SIDE)
ATTRIBUTES = "/entry/instrument/NDAttributes"
PRIMARY = "/entry/instrument/bluesky/streams/primary"
DROPPED = [3, 4, 9]


def stream_of(wrote, *, rows=3, still=4):
    """A stream of the stage: trigger 0 before the first frame, and an end that was never written."""
    row, column = (np.rint(-wrote.positions_m.T * 1e9)).astype(np.int64)
    triggers = np.repeat(np.arange(len(row) + 1), rows)
    jitter = np.tile(np.arange(rows) - rows // 2, len(row) + 1) * 10
    table = np.zeros((len(triggers) + still, 24), np.int64)
    written = table[: len(triggers)]
    written[:, 1] = np.arange(1, len(triggers) + 1)
    written[:, 2] = triggers
    written[:, 3] = np.repeat([99_999, *column], rows) + jitter
    written[:, 4] = np.repeat([99_999, *row], rows) - jitter
    table[len(triggers) :] = table[len(triggers) - 1]
    table[len(triggers) :, 2] += 1 + np.arange(still)
    return table


def write(folder, wrote, *, kept=None, fly=True, motors="- nanox\n- nanoy\n"):
    """A master, the detector's file without the frames that were dropped, and the stage's."""
    kept = np.arange(len(wrote.counts)) if kept is None else kept
    for name in ("eiger", "pos_stream"):
        (folder / name).mkdir()
    with h5py.File(folder / "eiger" / "scan_000450.h5", "w") as file:
        file["/entry/data/data"] = wrote.stored(gap=2**32 - 1).astype(np.uint32)[kept]
        file[f"{ATTRIBUTES}/NDArrayUniqueId"] = (1000 + kept).astype(np.int32)
        file[f"{ATTRIBUTES}/DetectorDistance"] = np.full(len(kept), wrote.distance_m * 1e3)
        file[f"{ATTRIBUTES}/BeamCenterX"] = np.full(len(kept), float(BEAM[1]))
        file[f"{ATTRIBUTES}/BeamCenterY"] = np.full(len(kept), float(BEAM[0]))
        file[f"{ATTRIBUTES}/Xpos"] = np.zeros(len(kept))
    with h5py.File(folder / "pos_stream" / "scan_000450.h5", "w") as file:
        file["/entry/data/data"] = stream_of(wrote)
        file.create_group("/entry/instrument")
    path = folder / "scan_000450_master.hdf"
    with h5py.File(path, "w") as file:
        file["/entry/externals/eiger"] = h5py.ExternalLink("eiger/scan_000450.h5", "/entry/instrument")
        if fly:
            link = h5py.ExternalLink("pos_stream/scan_000450.h5", "/entry/instrument")
            file["/entry/externals/pos_stream"] = link
        else:
            row, column = -wrote.positions_m.T * 1e6
            file[f"{PRIMARY}/nanox/value"] = column
            file[f"{PRIMARY}/nanoy/value"] = row
        file["/entry/instrument/bluesky/metadata/motors"] = motors
        energy = "/entry/instrument/bluesky/streams/baseline/mono_energy/value_start"
        file[energy] = wrote.energy_ev / 1e3
    return path


@pytest.mark.parametrize(
    ("fly", "motors"),
    [
        (True, ""),
        (False, "- nanox\n- nanoy\n"),
        (False, "!!python/tuple\n- nanoy\n- nanox\n"),
    ],
)
def test_fly_scans_and_step_scans(tmp_path, fly, motors):
    wrote = truth()
    scan = require_read(write(tmp_path, wrote, fly=fly, motors=motors), wrote, reading=CROP)
    assert scan.layout == "aps_polar"


@pytest.mark.parametrize("fly", [True, False])
def test_frames_that_were_dropped_shift_nothing(tmp_path, fly):
    wrote = truth()
    kept = np.delete(np.arange(12), DROPPED)
    scan = open_scan(write(tmp_path, wrote, kept=kept, fly=fly), reading=CROP)
    np.testing.assert_allclose(scan.positions_m, wrote.positions_m[kept], atol=1e-12)
    good = scan.good_pixels
    np.testing.assert_array_equal(
        scan.frames([5])[0, good], wrote.counts[kept[5], 9 : 9 + SIDE, 21 : 21 + SIDE][good]
    )
    assert scan.left_out["positions without a frame"] == len(DROPPED) + fly  # and trigger 0


def test_a_step_scan_whose_engine_skipped_the_same_steps_as_the_detector(tmp_path):
    wrote = truth()
    path = write(tmp_path, wrote, fly=False)
    with h5py.File(tmp_path / "eiger" / "scan_000450.h5", "r+") as file:
        file[f"{ATTRIBUTES}/NDArrayUniqueId"][5:] += 3
    require_read(path, wrote, reading=CROP)


def test_a_detector_that_has_not_written_yet_is_waited_for(tmp_path):
    path = write(tmp_path, truth())
    (tmp_path / "eiger" / "scan_000450.h5").unlink()
    with pytest.raises(NotYetError, match="there is no such file"):
        open_scan(path, reading=CROP)


def in_eiger(change):
    def changed(folder):
        with h5py.File(folder / "eiger" / "scan_000450.h5", "r+") as file:
            change(file)

    return changed


def in_stream(table):
    def changed(folder):
        with h5py.File(folder / "pos_stream" / "scan_000450.h5", "r+") as file:
            del file["/entry/data/data"]
            file["/entry/data/data"] = table

    return changed


def with_numbers(values):
    def change(file):
        del file[f"{ATTRIBUTES}/NDArrayUniqueId"]
        if values is not None:
            file[f"{ATTRIBUTES}/NDArrayUniqueId"] = values

    return in_eiger(change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_numbers(None), "without which nobody knows which frames were dropped"),
        (with_numbers(np.arange(5)), "has 12 frames and 5 numbers"),
        (with_numbers(np.zeros(12)), "two frames have the same number"),
        (with_numbers(np.full(12, 0.5)), "numbers that are not whole"),
        (in_stream(np.zeros((5, 3))), "a stream of positions has lines of more than 4 columns"),
        (in_stream(np.zeros(5)), "a stream of positions has lines of more than 4 columns"),
        (in_stream(np.full((5, 5), 99)), "no frame has a position: frames have the numbers 1 to 12"),
        (in_eiger(lambda file: file.__delitem__("/entry/data/data")), "there is no dataset /entry/data/data"),
        (in_eiger(lambda file: file.__delitem__("/entry/instrument")), "there is no /entry/externals/eiger"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    path = write(tmp_path, truth())
    change(tmp_path)
    with pytest.raises(ScanError, match=words):
        open_scan(path, reading=CROP)


def test_a_scan_of_one_motor_is_none_across_the_beam(tmp_path):
    path = write(tmp_path, truth(), fly=False, motors="- mono_energy\n")
    with pytest.raises(ScanError, match=r"names \['mono_energy'\]"):
        open_scan(path, reading=CROP)
