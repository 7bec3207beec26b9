"""Snapshots: a run goes on as if nothing had happened, or with the same samples on other ranks."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from ranks import RankPool, on_ranks
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from samples import assert_whole, batch_of, new_buffer

from rehearsal_kit.base import settings as settings_of_the_kit
from rehearsal_kit.base import tensor_files
from rehearsal_kit.base.errors import SettingsError, SnapshotError
from rehearsal_kit.base.limits import Word
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.policies import POLICIES, Quotas
from rehearsal_kit.buffer.snapshots import read_shards, write_shard
from rehearsal_kit.buffer.states import Round

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
    groups = ProcessGroups(0, 1)
    buffer = new_buffer(groups, policy=policy, **settings)
    go_on(groups, buffer, range(BREAK))
    path = write_shard(tmp_path, buffer.state(), rank=0, ranks=1).path
    buffer.close()
    return path


def opened(path):
    """What safetensors itself finds in a shard: its tensors, and what is said about them."""
    with safe_open(path, framework="numpy") as file:
        return load_file(path), file.metadata()


def test_dealing_shares_every_group_evenly(tmp_path):
    alone(tmp_path)
    groups = [read_shards(tmp_path, rank=rank, ranks=3).contents.groups for rank in range(3)]
    counts = np.array([np.bincount(part, minlength=3) for part in groups])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert counts.sum() == 40


def test_a_shard_of_a_policy_that_is_not_there_is_refused_in_words(tmp_path):
    path = alone(tmp_path)
    tensors, about = opened(path)
    save_file(tensors, path, metadata={**about, "policy": "lifo"})
    with pytest.raises(SnapshotError, match="policy 'lifo', which is not there; known are quotas"):
        read_shards(tmp_path, rank=0, ranks=2)


def test_dealing_keeps_the_order_of_age(tmp_path):
    path = alone(tmp_path, "fifo")
    assert opened(path)[1]["oldest"] != "0"  # the ring has turned
    for rank in range(3):
        state = read_shards(tmp_path, rank=rank, ranks=3)
        numbers = state.layout.unpack(state.contents.rows[:])["sample_id"].tolist()
        steps = [number % 2**17 // 2**8 for number in numbers]
        assert steps == sorted(steps)


class Counting(Quotas):
    """A policy with a state of its own: how many samples a full store was offered, and a mean of theirs."""

    name = "counting"

    def __init__(self, seed=0):
        super().__init__(seed)
        self.counted, self.mean = 0, 0.5

    def make_room(self, group, index, *, capacity, uniform):
        self.counted += 1
        self.mean += (uniform - self.mean) / self.counted
        return super().make_room(group, index, capacity=capacity, uniform=uniform)

    def state(self):
        return {"counted": self.counted, "mean": self.mean}

    def restore(self, state):
        self.counted, self.mean = state["counted"], state["mean"]


class Shared(Counting):
    def dealt(self, states, ranks):
        total = sum(state["counted"] for state in states)
        return [{"counted": len(range(rank, total, ranks)), "mean": 0.25} for rank in range(ranks)]


@pytest.fixture
def counting(monkeypatch):
    def known(kind):
        monkeypatch.setitem(POLICIES, "counting", kind)
        table = settings_of_the_kit.SETTINGS
        monkeypatch.setitem(table, "policy", replace(table["policy"], limits=Word((*POLICIES,))))

    return known


def test_what_a_policy_remembers_is_restored_whatever_it_is(tmp_path, counting):
    counting(Counting)
    path = alone(tmp_path, "counting")
    state = read_shards(tmp_path, rank=0, ranks=1)
    assert state.policy_state["counted"] > 1
    assert 0 < state.policy_state["mean"] < 1
    buffer = new_buffer(ProcessGroups(0, 1), policy="counting")
    buffer.restore(state)
    assert buffer.state().policy_state == state.policy_state
    buffer.close()
    as_before(path)
    with pytest.raises(SnapshotError, match="policy counting lacks counted, mean"):
        read_shards(tmp_path, rank=0, ranks=1)


def test_on_another_number_of_ranks_a_policy_begins_anew_or_as_it_says_itself(tmp_path, counting):
    counting(Counting)
    alone(tmp_path, "counting")
    written = read_shards(tmp_path, rank=0, ranks=1).policy_state["counted"]
    for rank in range(3):
        assert read_shards(tmp_path, rank=rank, ranks=3).policy_state == {"counted": 0, "mean": 0.5}
    counting(Shared)
    states = [read_shards(tmp_path, rank=rank, ranks=3).policy_state for rank in range(3)]
    assert sum(state["counted"] for state in states) == written


def test_a_missing_shard_is_said_and_counted(three_ranks, tmp_path):
    three_ranks(interrupted, str(tmp_path), "quotas", ())
    (tmp_path / "buffer-00001-of-00003.safetensors").unlink()
    with pytest.raises(SnapshotError, match=r"buffer-00001-of-00003.safetensors.*partial=True"):
        read_shards(tmp_path, rank=0, ranks=3)
    with pytest.warns(UserWarning, match="1 of 3 shards"):
        states = [read_shards(tmp_path, rank=rank, ranks=3, partial=True) for rank in range(3)]
    assert [len(state.contents.groups) for state in states] == [9, 9, 9]


def test_a_file_is_private_and_whole_or_not_there(tmp_path):
    path = alone(tmp_path / "new")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


def damaged_format(tensors, about):
    about["format"] = "99"


def damaged_layout(tensors, about):
    about["layout"] = '[{"name": "x", "shape": [2], "dtype": "load", "half": false, "finite": true}]'


def damaged_number(tensors, about):
    about["step"] = "twelve"


def damaged_state(tensors, about):
    about["threshold"] = "NaN"


def damaged_state_of_its_own(tensors, about):
    about["state/counted"] = "true"


def damaged_rows(tensors, about):
    tensors["store/rows"] = tensors["store/rows"][:, :-1].copy()


def damaged_places(tensors, about):
    tensors["store/places"][0] = 3


def damaged_parts(tensors, about):
    del tensors["store/groups"]


def damaged_dtype(tensors, about):
    tensors["store/rows"] = tensors["store/rows"].astype(np.int16)


def damaged_numbers(tensors, about):
    tensors["store/groups"] = tensors["store/groups"].astype(np.float64)


def damaged_truth(tensors, about):
    tensors["store/places"] = tensors["store/places"] > 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_format, "format 99"),
        (damaged_layout, "dtype 'load'"),
        (damaged_number, "twelve"),
        (damaged_state, "threshold nan; that must be"),
        (damaged_state_of_its_own, "counted True; that must be"),
        (damaged_rows, "a row has"),
        (damaged_places, "not consistent"),
        (damaged_parts, "cannot be read"),
        (damaged_dtype, "dtype 'I16'"),
        (damaged_numbers, "dtype 'F64'"),
        (damaged_truth, "store/places has dtype bool"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path, damage, said):
    path = alone(tmp_path)
    tensors, about = opened(path)
    damage(tensors, about)
    save_file(tensors, path, metadata=about)
    with pytest.raises(SnapshotError, match=said) as raised:
        read_shards(tmp_path, rank=0, ranks=1)
    assert path.name in str(raised.value)


@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_its_name(tmp_path, left):
    path = alone(tmp_path)
    os.truncate(path, int(path.stat().st_size * left))
    with pytest.raises(SnapshotError, match=f"{path.name}.*truncated"):
        read_shards(tmp_path, rank=0, ranks=1)


def test_what_is_written_is_a_safetensors_file_with_the_digest_that_is_said(tmp_path):
    buffer = new_buffer(ProcessGroups(0, 1))
    go_on(ProcessGroups(0, 1), buffer, range(BREAK))
    state, steps = buffer.state(), []
    written = write_shard(tmp_path, state, rank=0, ranks=1, beat=lambda: steps.append(1))
    tensors, about = opened(written.path)
    assert np.array_equal(tensors["store/rows"], state.contents.rows)
    assert tensors["drawn/second"].dtype == bool
    assert (about["policy"], about["step"]) == ("quotas", str(BREAK - 1))
    content = written.path.read_bytes()
    assert (written.bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert steps
    buffer.close()


# Before November 2026 --------------------------------------------------------------------------------------


def as_before(path):
    """The same shard as versions before wrote it: HDF5, numbers as attributes. Returns its path."""
    tensors, about = opened(path)
    old = path.with_suffix(".h5")
    with h5py.File(old, "w") as file:
        for name in ("format", "seed", "capacity", "oldest", "threshold", "step"):
            file.attrs[name] = int(about[name])
        file.attrs.update(layout=about["layout"], policy=about["policy"])
        for name, array in tensors.items():
            file[name] = array
        file["drawn"].attrs["stored"] = int(about["stored"])
    path.unlink()
    return old


def everything(folder, rank, ranks):
    state = read_shards(folder, rank=rank, ranks=ranks)
    offered = state.pending.rows().tolist() if state.pending else None
    drawn = (state.drawn.rows.tolist(), state.drawn.second.tolist()) if state.drawn else None
    kept = (state.layout, state.policy, state.seed, state.capacity, state.policy_state, state.step)
    contents = state.contents
    return (
        *kept,
        contents.rows[:].tolist(),
        contents.groups.tolist(),
        contents.places.tolist(),
        offered,
        drawn,
    )


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])  # those that there were
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_shard_of_an_earlier_version_says_the_same(tmp_path, policy, ranks):
    path = alone(tmp_path, policy)
    now = [everything(tmp_path, rank, ranks) for rank in range(ranks)]
    as_before(path)
    assert [everything(tmp_path, rank, ranks) for rank in range(ranks)] == now


def test_a_shard_of_an_earlier_version_is_read_from_itself_alone(tmp_path):
    old = as_before(alone(tmp_path))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["rows"] = np.zeros((3, 3), np.int64)
    with h5py.File(old, "r+") as file:
        del file["store/rows"]
        file["store/rows"] = h5py.ExternalLink(tmp_path / "other.h5", "rows")
    with pytest.raises(SnapshotError, match=f"{old.name}.*lies in another file"):
        read_shards(tmp_path, rank=0, ranks=1)


# While the run goes on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [40, 12])
def test_what_is_frozen_stays_as_it_was_whatever_the_store_does_next(tmp_path, policy, capacity):
    """Rows are replaced, moved and let go of before they are written, and the store is made smaller."""
    groups = ProcessGroups(0, 1)
    buffer = new_buffer(groups, policy=policy)
    go_on(groups, buffer, range(BREAK))
    write_shard(tmp_path / "then", buffer.state(), rank=0, ranks=1)
    frozen = buffer.frozen()
    buffer.advance(Round(step=BREAK, representatives=5, distillation=2, capacity=capacity))
    buffer.offer(batch_of(0, BREAK, 6), group=9)
    go_on(groups, buffer, range(BREAK + 1, END))
    buffer.close()
    write_shard(tmp_path / "later", frozen, rank=0, ranks=1)
    frozen.release()
    assert everything(tmp_path / "later", 0, 1) == everything(tmp_path / "then", 0, 1)


def test_a_checkpoint_in_quick_succession_is_of_its_own_moment(tmp_path):
    """Each has rows of its own that are copied before they change; they are written one after the other."""
    groups = ProcessGroups(0, 1)
    buffer, frozen = new_buffer(groups, capacity=12), []
    for number, steps in enumerate((range(BREAK), [BREAK])):
        go_on(groups, buffer, steps)
        write_shard(tmp_path / f"then {number}", buffer.state(), rank=0, ranks=1)
        frozen.append(buffer.frozen())
    go_on(groups, buffer, range(BREAK + 1, END))
    buffer.close()
    for number, each in enumerate(frozen):
        write_shard(tmp_path / f"later {number}", each, rank=0, ranks=1)
        each.release()
        then, later = (everything(tmp_path / f"{when} {number}", 0, 1) for when in ("then", "later"))
        assert later == then
    assert everything(tmp_path / "later 0", 0, 1) != everything(tmp_path / "later 1", 0, 1)


def test_where_memory_is_free_no_step_waits_for_a_checkpoint_to_be_written(tmp_path):
    """Though all rows change before any is read: an eighth of them, or 16 MiB, could be held twice else."""
    wide = {"x": torch.rand(8, 2**18), "sample_id": torch.arange(8)}  # rows of 1 MiB
    settings = Rehearsal(representatives=2, candidates=8, capacity=24, policy="fifo")
    with DistributedBuffer.over_world(wide, settings, seed=1) as buffer:
        for step in range(8):
            buffer.augment({"x": wide["x"] + step, "sample_id": 8 * step + torch.arange(8)})
            if step == 3:
                write_shard(tmp_path / "then", buffer.state(), rank=0, ranks=1)
                frozen = buffer.frozen()
        buffer.advance()
        assert buffer.state().step == 8  # and all that was offered before is stored
        assert frozen.contents.rows.nbytes == 24 * buffer.layout.row_bytes
    write_shard(tmp_path / "later", frozen, rank=0, ranks=1)
    frozen.release()
    then, later = (next((tmp_path / when).iterdir()).read_bytes() for when in ("then", "later"))
    assert then == later


STORE = 64 * 2**20


def peak_of(work):
    """Bytes by which the resident memory of this process grows at most while it works, whoever takes them."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew, at what is resident now
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])


def peaks(groups, folder, block_bytes):
    """In a process of its own: of a checkpoint, and of its restoring, as shares of a store of 1 MiB rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "BLOCK_BYTES", block_bytes)
        wide = {"x": torch.ones(8, 2**18), "sample_id": torch.arange(8)}
        settings = Rehearsal(representatives=2, candidates=2, capacity=STORE // 2**20)
        with DistributedBuffer.over_world(wide, settings, seed=1) as buffer:
            for step in range(8):
                buffer.augment({**wide, "sample_id": 8 * step + torch.arange(8)})
            buffer.advance()
            frozen = buffer.frozen()
            written = peak_of(lambda: write_shard(folder, frozen, rank=0, ranks=1))
            frozen.release()
        with DistributedBuffer.over_world(wide, settings, seed=1) as buffer:
            restored = peak_of(lambda: buffer.load(folder))
            assert len(buffer.state().contents.groups) == STORE // 2**20
    return written / STORE, restored / STORE


def test_a_checkpoint_and_its_restoring_take_a_few_blocks_of_memory_and_no_second_store(tmp_path):
    ((written, restored),) = on_ranks(1, tmp_path, peaks, tmp_path / "blocks", tensor_files.BLOCK_BYTES)
    assert written < 1 / 4
    assert 3 / 4 < restored < 5 / 4  # the store itself is filled
    # Where all of it is one block, there is a second store, and it is seen.
    ((written, restored),) = on_ranks(1, tmp_path, peaks, tmp_path / "whole", 2 * STORE)
    assert written > 3 / 4
    assert restored > 7 / 4


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match="no shards"):
        read_shards(tmp_path, rank=0, ranks=1)


@pytest.mark.parametrize("change", [{"policy": "fifo"}, {"seed": 8}, {"half": ("image",)}])
def test_a_state_of_other_settings_is_refused(tmp_path, change):
    alone(tmp_path)
    buffer = new_buffer(ProcessGroups(0, 1), **change)
    with pytest.raises(SettingsError, match="cannot be restored"):
        buffer.restore(read_shards(tmp_path, rank=0, ranks=1))
    buffer.close()


def test_a_restored_buffer_takes_another_capacity_at_once(tmp_path):
    alone(tmp_path)
    buffer = new_buffer(ProcessGroups(0, 1))
    buffer.restore(read_shards(tmp_path, rank=0, ranks=1))
    buffer.advance(Round(step=BREAK, representatives=5, capacity=12))
    assert len(buffer.state().contents.groups) == 12
    buffer.close()
