"""Snapshots: a run goes on as if nothing had happened, or with the same samples on other ranks."""

from __future__ import annotations

import os
import stat

import h5py
import numpy as np
import pytest
from ranks import RankPool
from samples import assert_whole, batch_of, new_buffer

from rehearsal_kit.errors import SettingsError, SnapshotError
from rehearsal_kit.groups import Groups
from rehearsal_kit.rounds import Round
from rehearsal_kit.snapshots import read_shards, write_shard

POLICIES = ["quotas", "reservoir", "fifo"]
BREAK, END = 14, 26


def go_on(groups, buffer, steps):
    seen = []
    for step in steps:
        drawn = buffer.advance(Round(step=step, representatives=5, distillation=2))
        if drawn is not None:
            seen.append([drawn.samples["sample_id"].tolist(), drawn.distillation["sample_id"].tolist()])
            assert_whole(drawn.samples)
        buffer.offer(batch_of(groups.rank, step, 6 - groups.rank), group=step // 5)
    return seen


def names(state):
    offered = state.layout.unpack(state.pending.rows())["sample_id"].tolist() if state.pending else []
    return sorted(state.layout.unpack(state.contents.rows)["sample_id"].tolist()), sorted(offered)


def interrupted(groups, folder, policy, half):
    """What is drawn after the break without one; and the names held at the break, written to files."""
    buffer = new_buffer(groups, policy=policy, half=half)
    go_on(groups, buffer, range(BREAK))
    state = buffer.state()
    buffer.save(folder)
    held = names(state)
    after = go_on(groups, buffer, range(BREAK, END))
    buffer.close()
    return held, after


def restored(groups, folder, policy, half):
    buffer = new_buffer(groups, policy=policy, half=half)
    buffer.load(folder)
    held = names(buffer.state())
    after = go_on(groups, buffer, range(BREAK, END))
    buffer.close()
    return held, after


@pytest.mark.parametrize("half", [(), ("outputs",)], ids=["whole", "half"])
@pytest.mark.parametrize("policy", POLICIES)
def test_check_14_on_as_many_ranks_everything_goes_on_bit_by_bit(pool, tmp_path, policy, half):
    before = pool(interrupted, str(tmp_path), policy, half)
    assert pool(restored, str(tmp_path), policy, half) == before
    assert all(len(after) == END - BREAK for _, after in before)


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    ranks = RankPool(3, tmp_path_factory.mktemp("three"))
    yield ranks
    ranks.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_check_14_on_another_number_of_ranks_the_same_samples_go_on(pool, three_ranks, tmp_path, policy):
    written = three_ranks(interrupted, str(tmp_path), policy, ())
    once = pool(restored, str(tmp_path), policy, ())
    assert once == pool(restored, str(tmp_path), policy, ())
    for part in (0, 1):  # what is stored, and what is still on its way
        before = sorted(name for held, _ in written for name in held[part])
        after = sorted(name for held, _ in once for name in held[part])
        assert after == before
    sizes = [len(held[0]) for held, _ in once]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(after) == END - BREAK - 1 for _, after in once)  # the first mini-batch is not augmented


def alone(tmp_path, policy="quotas", **settings):
    groups = Groups(0, 1)
    buffer = new_buffer(groups, policy=policy, **settings)
    go_on(groups, buffer, range(BREAK))
    path = write_shard(tmp_path, buffer.state(), rank=0, ranks=1)
    buffer.close()
    return path


def test_dealing_shares_every_group_evenly(tmp_path):
    alone(tmp_path)
    groups = [read_shards(tmp_path, rank=rank, ranks=3).contents.groups for rank in range(3)]
    counts = np.array([np.bincount(part, minlength=3) for part in groups])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert counts.sum() == 40


def test_dealing_keeps_the_order_of_age(tmp_path):
    path = alone(tmp_path, "fifo")
    with h5py.File(path) as file:
        assert file.attrs["oldest"]  # the ring has turned
    for rank in range(3):
        state = read_shards(tmp_path, rank=rank, ranks=3)
        numbers = state.layout.unpack(state.contents.rows)["sample_id"].tolist()
        steps = [number % 2**17 // 2**8 for number in numbers]
        assert steps == sorted(steps)


def test_a_missing_shard_is_said_and_counted(three_ranks, tmp_path):
    three_ranks(interrupted, str(tmp_path), "quotas", ())
    (tmp_path / "buffer-00001-of-00003.h5").unlink()
    with pytest.raises(SnapshotError, match=r"buffer-00001-of-00003.h5.*partial=True"):
        read_shards(tmp_path, rank=0, ranks=3)
    with pytest.warns(UserWarning, match="1 of 3 shards"):
        states = [read_shards(tmp_path, rank=rank, ranks=3, partial=True) for rank in range(3)]
    assert [len(state.contents.groups) for state in states] == [9, 9, 9]


def test_a_file_is_private_and_whole_or_not_there(tmp_path):
    path = alone(tmp_path / "new")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def damaged_format(file):
    file.attrs["format"] = 99


def damaged_layout(file):
    file.attrs["layout"] = '[{"name": "x", "shape": [2], "dtype": "load", "half": false, "finite": true}]'


def damaged_rows(file):
    rows = file["store/rows"][:, :-1]
    del file["store/rows"]
    file["store/rows"] = rows


def damaged_places(file):
    file["store/places"][0] = 3


def damaged_parts(file):
    del file["store"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_format, "format 99"),
        (damaged_layout, "dtype 'load'"),
        (damaged_rows, "a row has"),
        (damaged_places, "not consistent"),
        (damaged_parts, "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path, damage, said):
    path = alone(tmp_path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(SnapshotError, match=said) as raised:
        read_shards(tmp_path, rank=0, ranks=1)
    assert path.name in str(raised.value)


def test_a_truncated_file_is_refused_with_its_name(tmp_path):
    path = alone(tmp_path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SnapshotError, match=f"{path.name}.*truncated"):
        read_shards(tmp_path, rank=0, ranks=1)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match="no shards"):
        read_shards(tmp_path, rank=0, ranks=1)


@pytest.mark.parametrize("change", [{"policy": "fifo"}, {"seed": 8}, {"half": ("image",)}])
def test_a_state_of_other_settings_is_refused(tmp_path, change):
    alone(tmp_path)
    buffer = new_buffer(Groups(0, 1), **change)
    with pytest.raises(SettingsError, match="cannot be restored"):
        buffer.restore(read_shards(tmp_path, rank=0, ranks=1))
    buffer.close()


def test_a_restored_buffer_takes_another_capacity_at_once(tmp_path):
    alone(tmp_path)
    buffer = new_buffer(Groups(0, 1))
    buffer.restore(read_shards(tmp_path, rank=0, ranks=1))
    buffer.advance(Round(step=BREAK, representatives=5, capacity=12))
    assert len(buffer.state().contents.groups) == 12
    buffer.close()
