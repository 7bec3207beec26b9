from itertools import combinations

import numpy as np
import pytest
import torch
from real_data import real_data

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.experience import shard
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scan_tasks import regions, split_scan
from rehearsal_kit.data.scans.acquisition import Acquisition
from rehearsal_kit.data.scans.cxi_writing import write_cxi
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.scans.scan import patch_corners
from rehearsal_kit.data.simulated_beamline import Beamline, convert
from rehearsal_kit.record.commands import Arrived

SIZE = 32
PREPARATION = Preparation(size=SIZE, scale=30.0)


def opened(arrived, preparation):
    return split_scan(open_scan(arrived.path), arrived, preparation)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return Beamline(folder=tmp_path_factory.mktemp("beamline"), seed=7).write(1)


@pytest.fixture(scope="module")
def experience(path):
    return opened(Arrived(name="a", path=str(path)), PREPARATION)


def painted(experience, indices):
    """The object's pixels that the targets of these frames cover."""
    seen = np.zeros(experience.scan.object_shape, bool)
    size = experience.preparation.size
    for row, column in patch_corners(experience.scan.positions_px[indices], size):
        assert row >= 0
        assert column >= 0
        assert row + size <= seen.shape[0]
        assert column + size <= seen.shape[1]
        seen[row : row + size, column : column + size] = True
    return seen


def assert_separate(experience):
    sets = [painted(experience, getattr(experience, name)) for name in ("training", "watched", "test")]
    for one, other in combinations(sets, 2):
        assert not (one & other).any()


def test_targets_of_training_watched_and_test_share_no_pixel(experience):
    assert_separate(experience)
    counts = [len(experience.training), len(experience.watched), len(experience.test)]
    assert min(counts) >= 20
    assert counts[0] > 200
    assert sum(counts) + experience.skipped == len(experience.scan) == 384


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnm_hxn_scan247/scan247.npz", 64),
        ("lcls_xpp_run1084_recon/Run1084_recon3_postPC.npz", 32),
    ],
)
def test_real_scans_are_split_without_overlap(tmp_path, name, size):
    path = convert(real_data(name), tmp_path, seed=0)
    real = opened(Arrived(name="real", path=str(path)), Preparation(size=size, scale=1.0))
    assert_separate(real)
    assert len(real.training) > 200


def test_regions_of_one_scan_share_a_held_out_strip_that_no_training_touches(tmp_path):
    path = convert(real_data("cnm_hxn_scan247/scan247.npz"), tmp_path, seed=0)
    tasks = regions(path, 3, size=SIZE)
    assert len({task.name for task in tasks}) == 3
    parts = [opened(task, PREPARATION) for task in tasks]
    trained = [painted(one, one.training) for one in parts]
    for one in parts:
        assert len(one.training) > 80
        np.testing.assert_array_equal(one.test, parts[0].test)
        held_out = painted(one, np.concatenate([one.watched, one.test]))
        assert not any((held_out & seen).any() for seen in trained)
    frames = np.concatenate([one.training for one in parts])
    assert len(set(frames.tolist())) > 0.95 * len(frames)
    with pytest.raises(ScanError, match="0 regions"):
        regions(path, 0)


def test_boxes_are_kept(path):
    held_out, region = (120.0, 200.0, 0.0, 200.0), (0.0, 100.0, 20.0, 200.0)
    one = opened(Arrived(name="a", path=str(path), held_out=held_out, region=region), PREPARATION)
    rows, columns = np.nonzero(painted(one, np.concatenate([one.watched, one.test])))
    assert rows.min() >= 120
    assert rows.max() < 200
    rows, columns = np.nonzero(painted(one, one.training))
    assert rows.max() < 100
    assert columns.min() >= 20
    assert_separate(one)


def test_shards_are_disjoint_cover_and_differ_by_at_most_one(experience):
    for ranks in (1, 2, 5):
        shards = [shard(experience, seed=1, task=0, rank=rank, ranks=ranks) for rank in range(ranks)]
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
        np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(len(experience.training)))
    other = shard(experience, seed=1, task=1, rank=0, ranks=1)
    assert (other != shards[0][0]).any()
    assert (other != shard(experience, seed=2, task=1, rank=0, ranks=1)).any()


def test_samples_hold_pattern_and_the_central_target_in_the_order_asked_for(experience):
    indices = experience.training[[5, 2, 9]]
    samples = experience.load("training", np.array([5, 2, 9]))
    assert samples["number"].tolist() == indices.tolist()
    images = {name: (tuple(v.shape), v.dtype) for name, v in samples.items() if name != "number"}
    assert images == dict.fromkeys(("diffraction", "amplitude", "phase"), ((3, 1, SIZE, SIZE), torch.float32))
    wave = (samples["amplitude"] * torch.exp(1j * samples["phase"])).numpy()[1, 0]
    row, column = np.round(experience.scan.positions_px[indices[1]]).astype(int) - SIZE // 2
    target = experience.scan.object()[row : row + SIZE, column : column + SIZE]
    assert np.abs(np.vdot(wave, target)) == pytest.approx(
        np.linalg.norm(wave) * np.linalg.norm(target), rel=1e-5
    )
    counts = experience.scan.frames(indices)
    expected = np.sqrt(counts[2].reshape(32, 2, 32, 2).sum(axis=(1, 3))) / 30
    np.testing.assert_allclose(samples["diffraction"][2, 0], expected, rtol=1e-5)


def test_the_object_has_median_amplitude_1_and_mean_phase_0_where_patches_lie(experience):
    seen = painted(experience, np.arange(len(experience.scan)))
    wave = (experience.scan.object() / experience.unit)[seen]
    assert np.median(np.abs(wave)) == pytest.approx(1, abs=1e-4)
    assert np.angle((wave / np.abs(wave)).mean()) == pytest.approx(0, abs=1e-4)


def blank(tmp_path, **changes):
    grid = np.indices((20, 12)).reshape(2, -1).T * 4.0 + 16
    counts = np.ones((len(grid), 16, 16), np.uint16)
    values = {
        "counts": counts,
        "positions_px": grid,
        "simulated": True,
        "object": -np.ones((120, 90), np.complex64),
    }
    path = write_cxi(tmp_path / "blank.cxi", Acquisition(**(values | changes)))
    return Arrived(name="blank", path=str(path))


def test_frames_without_beam_are_left_out_when_loaded(tmp_path):
    counts = np.ones((240, 16, 16), np.uint16)
    counts[3] = 0
    one = opened(blank(tmp_path, counts=counts), Preparation(size=16, scale=1.0))
    assert {len(values) for values in one.load("training", np.array([2, 3, 4])).values()} == {2}
    assert one.load("training", np.array([2, 3, 4]))["number"].tolist() == [2, 4]
    assert {len(values) for values in one.load("training", np.array([], np.int64)).values()} == {0}


def test_the_phase_of_the_cut_is_plus_pi(tmp_path):
    image = np.ones((120, 90), np.complex64)
    image[10, 10] = complex(-1, -0.0)
    one = opened(blank(tmp_path, object=image), Preparation(size=16, scale=1.0))
    phase = one.load("training", np.array([0]))["phase"]
    assert phase.max().item() == pytest.approx(np.pi)
    assert phase.min() > -np.pi


def test_frames_whose_target_leaves_the_object_are_skipped(tmp_path):
    inside = opened(blank(tmp_path), Preparation(size=16, scale=1.0))
    positions = inside.scan.positions_px.copy()
    positions[[0, 5]] = [[7.0, 20.0], [20.0, 85.0]]
    one = opened(blank(tmp_path, positions_px=positions), Preparation(size=16, scale=1.0))
    assert one.skipped == inside.skipped + 2
    assert not set(one.training) & {0, 5}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"held_out": (0.0, 10.0, 0.0, 90.0)}, "no frame is left for watched"),
        ({"held_out": (0.0, 120.0, 0.0, 90.0)}, "no frame is left for training"),
        ({"region": (100.0, 120.0, 0.0, 90.0)}, "no frame is left for training"),
    ],
)
def test_empty_sets_say_why(tmp_path, changes, says):
    arrived = blank(tmp_path)
    with pytest.raises(ScanError, match=rf"blank\.cxi: {says}.*16 pixels"):
        opened(Arrived(name="a", path=arrived.path, **changes), Preparation(size=16, scale=1.0))


def test_scans_that_cannot_be_trained_on_are_refused(tmp_path):
    with pytest.raises(ScanError, match=r"blank\.cxi: no reconstruction: nothing to train on"):
        opened(blank(tmp_path, object=None), Preparation(size=16))
    with pytest.raises(ScanError, match=r"blank\.cxi: frames are 16 x 16"):
        opened(blank(tmp_path), PREPARATION)
    with pytest.raises(ScanError, match=r"blank\.cxi: the object is zero"):
        opened(blank(tmp_path, object=np.zeros((120, 90), np.complex64)), Preparation(size=16))
    with pytest.raises(ScanError, match="no target of 16 pixels"):
        opened(blank(tmp_path, object=np.ones((10, 10), np.complex64)), Preparation(size=16))
