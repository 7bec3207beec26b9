"""Checkpoints are kept however long a rank takes, given up where one is gone, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time

import numpy as np
import pytest
import torch
from ranks import PROCESSES
from runkit import until

from rehearsal_kit.base.patience import Patience
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.snapshots import read_shards
from rehearsal_kit.buffer.states import BufferState
from rehearsal_kit.buffer.store import Contents
from rehearsal_kit.rank import checkpoint_writer
from rehearsal_kit.rank.checkpoint_files import STATE, find_checkpoints
from rehearsal_kit.rank.checkpoint_writer import CheckpointCopy, CheckpointWriter
from rehearsal_kit.record.lease import LeaseWatch
from rehearsal_kit.record.records import CheckpointFailed, CheckpointKept
from rehearsal_kit.record.run_folder import RunFolder

ROWS, WIDTH = 12, 2**19
"""Of a shard: a row is 2 MiB, so that it takes several blocks."""
LAYOUT = RowLayout.of({"x": torch.zeros(0, WIDTH)})


class Rows:
    """Rows of a shard that come when the test says so, or do not come at all."""

    shape = (ROWS, LAYOUT.words)
    nbytes = 0

    def __init__(self, number: int = 0) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self._error = OSError(number, os.strerror(number)) if number else None

    def __getitem__(self, block: slice) -> np.ndarray:
        self.asked.set()
        assert self.go_on.wait(60)
        if self._error is not None:
            raise self._error
        return np.full((len(range(ROWS)[block]), LAYOUT.words), 7, np.int64)

    def copy_into(self, out: np.ndarray) -> None:
        raise AssertionError


SMALL = RowLayout.of({"x": torch.zeros(0, 64)})


def copied(number: int, rank: int, *, rows=None, layout=LAYOUT) -> CheckpointCopy:
    rows = np.full((ROWS, layout.words), 7, np.int64) if rows is None else rows
    state = BufferState(
        layout=layout, policy="quotas", seed=1, capacity=2 * ROWS, policy_state={}, step=number,
        contents=Contents(rows, np.zeros(ROWS, np.int64), np.arange(ROWS)), pending=None, drawn=None,
    )  # fmt: skip
    tensors = {"now.weights.w": torch.full((3,), float(number))} if rank == 0 else {}
    return CheckpointCopy(
        number=number, state={"number": number}, tensors=lambda: tensors, buffer=state, error=None
    )


class Pair:
    """The keepers of two ranks, in one process."""

    def __init__(self, root, generation: int = 1, *, layout=LAYOUT) -> None:
        self.root, self.layout = root, layout
        self.ranks = [
            CheckpointWriter(
                root,
                Recovery(keep_last=9),
                ProcessGroups(rank, 2),
                generation=generation,
                run="ours",
                lease=LeaseWatch(RunFolder(root.parent), ""),
            )
            for rank in (0, 1)
        ]

    def take(self, number: int, *, only: int | None = None, rows=(None, None)) -> None:
        for each in self.ranks:
            each.ready(number)
        for rank, each in enumerate(self.ranks):
            if only in (None, rank):
                each.take(copied(number, rank, rows=rows[rank], layout=self.layout), step=number)

    def told(self):
        for each in self.ranks:
            each.settle()
        return self.ranks[0].finished()

    def close(self) -> None:
        for each in self.ranks:
            each.close()


@pytest.fixture
def pair(tmp_path):
    pair = Pair(tmp_path / "checkpoints")
    yield pair
    pair.close()


def left(root):
    return sorted(path.name for path in root.iterdir())


def require_whole(root, number: int) -> None:
    found = find_checkpoints(root)[number]
    found.verify(list(found.files))
    assert found.state()["number"] == number
    assert sorted(path.name for path in found.folder.iterdir()) == sorted([*found.files, "manifest.json"])
    for rank in (0, 1):
        assert (read_shards(found.folder, rank=rank, ranks=2).contents.rows[:] == 7).all()


def test_a_checkpoint_is_whole_with_the_parts_of_all_ranks(pair):
    pair.take(1)
    (kept,) = pair.told()
    assert isinstance(kept, CheckpointKept)
    assert left(pair.root) == ["000001"]
    require_whole(pair.root, 1)
    assert all(path.stat().st_mode & 0o077 == 0 for path in pair.root.rglob("*"))
    assert pair.ranks[1].beats >= 3  # somebody who watches sees it get on


def test_a_number_of_seven_digits_is_found_and_comes_after_those_of_six(tmp_path):
    pair = Pair(tmp_path / "checkpoints", layout=SMALL)
    for number in (1_000_000, 999_999):
        pair.take(number)
    pair.told()
    pair.close()
    assert [*find_checkpoints(pair.root)] == [999_999, 1_000_000]
    for number in (1_000_000, 999_999):
        require_whole(pair.root, number)
    (pair.root / "0999999").mkdir()  # a name that none of ours has is passed over
    assert len(find_checkpoints(pair.root)) == 2


def test_a_rank_that_is_slow_but_alive_is_waited_for(pair, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "PARTS_TIMEOUT_S", 0.4)
    slow = Rows()
    pair.take(1, rows=(None, slow))
    assert slow.asked.wait(60)
    patient = time.monotonic() + 3 * checkpoint_writer.PARTS_TIMEOUT_S
    until(lambda: time.monotonic() > patient)
    assert not pair.ranks[0].finished()
    slow.go_on.set()
    (kept,) = pair.told()
    assert isinstance(kept, CheckpointKept)
    require_whole(pair.root, 1)


def test_a_rank_that_shows_no_sign_of_life_is_given_up_and_nothing_is_left(pair, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "PARTS_TIMEOUT_S", 0.3)
    pair.take(1, only=0)
    (failed,) = pair.told()
    assert isinstance(failed, CheckpointFailed)
    assert "rank 1 has shown no sign of life" in failed.reason
    pair.ranks[1].take(copied(1, 1), step=1)  # it comes late, and must not begin again what was given up
    pair.told()
    assert left(pair.root) == []
    pair.take(2)
    pair.told()
    assert left(pair.root) == ["000002"]


def test_what_one_rank_cannot_write_is_told_and_the_others_stop(pair):
    full, slow = Rows(errno.ENOSPC), Rows()
    pair.take(1, rows=(full, slow))
    assert slow.asked.wait(60)
    folder = pair.root / "000001.g1.partial"
    full.go_on.set()
    until((folder / "given-up").exists)
    assert folder.exists()  # it is not removed while the other writes into it
    slow.go_on.set()
    (failed,) = pair.told()
    assert "No space left on device" in failed.reason
    assert left(pair.root) == []


def test_rank_0_says_why_another_rank_has_written_nothing(pair):
    full = Rows(errno.EDQUOT)
    full.go_on.set()
    pair.take(1, rows=(None, full))
    (failed,) = pair.told()
    assert "rank 1 could not write its part: OSError" in failed.reason
    assert "quota" in failed.reason
    assert left(pair.root) == []


def test_ranks_that_fail_do_not_wait_for_each_other_and_let_go_of_the_store(pair):
    pair.take(1, only=0)
    pair.take(2, only=0)
    pair.ranks[0].abandon()
    assert find_checkpoints(pair.root) == {}
    again = Pair(pair.root, generation=2)
    assert left(pair.root) == []
    again.close()


def test_no_more_than_two_are_taken_before_one_of_them_is_written(pair):
    rows = Rows()
    pair.take(1, only=0, rows=(rows, None))
    assert rows.asked.wait(60)
    pair.take(2, only=0)
    third = threading.Thread(target=pair.ranks[0].ready, args=(3,), daemon=True)
    third.start()
    third.join(0.05)
    assert third.is_alive()
    rows.go_on.set()
    pair.ranks[1].take(copied(1, 1), step=1)
    third.join(60)
    assert not third.is_alive()
    pair.ranks[1].take(copied(2, 1), step=2)
    assert [each.checkpoint for each in pair.told()] == [1, 2]


# Kills ---------------------------------------------------------------------------------------------------


def write_and_die(root, at: int, done) -> None:
    """Write checkpoint 1, then 2 until this event of the file system: then the process is gone."""
    pair = Pair(root, layout=SMALL)
    pair.take(1)
    pair.told()
    count, turn = [0], threading.Lock()

    def hear(event, arguments) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.truncate"):
            place = str(arguments[0])
            if str(root) in place:
                with turn:
                    count[0] += 1
                    if count[0] == at:
                        os._exit(9)

    sys.addaudithook(hear)
    pair.take(2)
    pair.told()
    pair.close()
    done.put(count[0])


def test_killed_at_any_point_the_one_before_is_whole_and_the_next_start_leaves_no_orphan(tmp_path):
    """Parts, manifest, renames: at each event in turn until the process lives through all of them."""
    done, at, seen = PROCESSES.SimpleQueue(), 0, set()
    while done.empty():
        at += 1
        root = tmp_path / f"{at}"
        process = PROCESSES.Process(target=write_and_die, args=(root, at, done))
        process.start()
        process.join(60)
        assert process.exitcode in (0, 9)
        whole = find_checkpoints(root)
        seen.add(tuple(whole))
        for number in whole:
            require_whole(root, number)
        Pair(root, generation=2).close()
        assert left(root) == [f"{number:06d}" for number in whole]
    assert seen == {(1,), (1, 2)}
    assert at > 15
    done.close()


def test_a_checkpoint_that_is_replaced_is_never_half_there(pair):
    """One that was refused is written again under the same number."""
    pair.take(1)
    pair.told()
    (pair.root / "000001" / STATE).write_text("{}")
    pair.take(1)
    pair.told()
    require_whole(pair.root, 1)
    assert left(pair.root) == ["000001"]


def test_what_gets_on_is_waited_for_and_what_stands_still_is_not():
    patience, began, signs = Patience(0.05), time.monotonic(), 0
    while time.monotonic() - began < 0.3:
        signs += 1
        assert patience.lasts(signs)
    until(lambda: not patience.lasts(signs))
    assert patience.lasts(None)
