"""The reader thread: whole files only, in natural order, each once; what is not whole yet is waited for."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import pytest

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.folder_watch import SHORT_S, FolderWatch
from rehearsal_kit.data.scans.doors.files import BLOCK, digest_of
from rehearsal_kit.record.commands import Arrived, FinishStream, Note, SetAside, Skip, Watch, Wish

DEADLINE_S = 10


@pytest.fixture
def make():
    made = []

    def folder_watch(pattern=None, **changes) -> FolderWatch:
        made.append(FolderWatch(**{"interval_s": 0.01, "settle_s": 0.0, **changes}))
        if pattern is not None:
            made[-1].watch(str(pattern))
        return made[-1]

    yield folder_watch
    for each in made:
        each.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "arrivals"]


def until(folder_watch: FolderWatch, count: int) -> list[Wish]:
    found, deadline = [], time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < deadline:
        found += folder_watch.poll()
        time.sleep(0.002)
    return found


def names(wishes: list[Wish]) -> list[str]:
    return [wish.command.name for wish in wishes if isinstance(wish.command, Arrived)]


def commands(wishes: list[Wish]) -> list[object]:
    return [wish.command for wish in wishes]


def whole(path) -> Arrived:
    with h5py.File(path.with_suffix(".new"), "w") as file:
        file["x"] = 1
    path.with_suffix(".new").rename(path)
    return Arrived(name=path.stem, path=str(path))


@contextmanager
def held(path) -> Iterator[None]:
    """As a writer holds it: locked, with no byte more."""
    with path.open("r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_files_come_in_natural_order_and_each_once(tmp_path, make):
    for number in (10, 9, 2):
        whole(tmp_path / f"scan_{number}.cxi")
    (tmp_path / "notes.txt").write_text("x")
    folder_watch = make(tmp_path / "*.cxi")
    assert names(until(folder_watch, 3)) == ["scan_2", "scan_9", "scan_10"]
    whole(tmp_path / "scan_11.cxi")
    (last,) = until(folder_watch, 1)
    assert last.command.digest
    assert last.command.size
    assert names([last]) == ["scan_11"]


def test_a_file_that_still_grows_has_not_arrived(tmp_path, make):
    folder_watch = make(tmp_path / "*.cxi", settle_s=0.3)
    deadline = time.monotonic() + 0.8
    with (tmp_path / "scan_1.cxi").open("w") as stream:
        while time.monotonic() < deadline:
            stream.write("more")
            stream.flush()
            assert folder_watch.poll() == []
    assert names(until(folder_watch, 1)) == ["scan_1"]


def test_what_was_there_before_can_be_left_out(tmp_path, make):
    old = whole(tmp_path / "old.cxi")
    folder_watch = make()
    folder_watch.ask(Wish(1, Watch(pattern=str(tmp_path / "*.cxi"), existing=False)))
    assert until(folder_watch, 1)[0].command.known == (old.path,)
    whole(tmp_path / "new.cxi")
    assert names(until(folder_watch, 1)) == ["new"]


def test_what_is_no_file_is_said_once_and_never_read(tmp_path, make):
    os.mkfifo(tmp_path / "scan_1.cxi")
    (tmp_path / "scan_2.cxi").mkdir()
    folder_watch = make(tmp_path / "*.cxi")
    (said,) = until(folder_watch, 1)
    assert isinstance(said.command, Note)
    assert "scan_1.cxi" in said.command.text
    assert "only files become tasks" in said.command.text
    whole(tmp_path / "scan_3.cxi")
    assert names(until(folder_watch, 1)) == ["scan_3"]


def test_a_file_that_its_writer_holds_is_said_and_waited_for(tmp_path, make):
    path = tmp_path / "scan_1.cxi"
    whole(path)
    with held(path):
        folder_watch = make(tmp_path / "*.cxi", say_s=0.05)
        (said,) = until(folder_watch, 1)
        assert "still open in the program that writes it" in said.command.text
        whole(tmp_path / "scan_2.cxi")
        assert names(until(folder_watch, 1)) == ["scan_2"]
    assert names(until(folder_watch, 1)) == ["scan_1"]


def test_a_file_cut_short_is_set_aside_in_the_end_and_taken_when_it_is_whole(tmp_path, make):
    path = tmp_path / "scan_1.cxi"
    content = open(whole(tmp_path / "whole").path, "rb").read()
    path.write_bytes(content[:-100])
    folder_watch = make(tmp_path / "*.cxi", patience_s=0.1)
    (aside,) = commands(until(folder_watch, 1))
    assert isinstance(aside, SetAside)
    assert "truncated" in aside.reason
    assert "looked at again" in aside.reason
    path.write_bytes(content)
    assert names(until(folder_watch, 1)) == ["scan_1"]


def test_a_file_that_the_ranks_set_aside_comes_again_once_it_has_changed(tmp_path, make):
    path = tmp_path / "scan_1.cxi"
    path.write_text("no scan")
    folder_watch = make(tmp_path / "*.cxi")
    (first,) = until(folder_watch, 1)
    folder_watch.set_aside(first.command)
    whole(tmp_path / "scan_2.cxi")
    assert names(until(folder_watch, 1)) == ["scan_2"]
    whole(path)
    assert names(until(folder_watch, 1)) == ["scan_1"]


def test_what_was_set_aside_before_a_restart_stays_so_while_it_has_not_changed(tmp_path, make):
    path = tmp_path / "scan_1.cxi"
    path.write_text("no scan")
    (first,) = until(make(tmp_path / "*.cxi"), 1)
    again = make()
    again.set_aside(Arrived(name="scan_1", path=str(path), digest=first.command.digest))
    again.watch(str(tmp_path / "*.cxi"))
    whole(tmp_path / "scan_2.cxi")
    assert names(until(again, 1)) == ["scan_2"]
    whole(path)
    assert names(until(again, 1)) == ["scan_1"]


def test_wishes_come_back_in_their_order_however_long_their_files_take(tmp_path, make):
    first, second = whole(tmp_path / "a.cxi"), whole(tmp_path / "b.cxi")
    folder_watch = make()
    with held(tmp_path / "a.cxi"):
        for number, command in enumerate((first, second, Skip(task=0), FinishStream()), 1):
            folder_watch.ask(Wish(number, command))
        began = time.monotonic()
        assert folder_watch.poll() == []
        assert time.monotonic() - began < 5  # the step goes on without them
    assert [wish.number for wish in until(folder_watch, 4)] == [1, 2, 3, 4]


def test_a_submitted_file_that_nobody_writes_is_set_aside_at_once(tmp_path, make):
    (tmp_path / "empty.cxi").touch()
    folder_watch = make()
    for number, name in enumerate(("none.cxi", "empty.cxi", "."), 1):
        folder_watch.ask(Wish(number, Arrived(name=name, path=str(tmp_path / name))))
    reasons = [command.reason for command in commands(until(folder_watch, 3))]
    assert ["no such file" in reasons[0], "empty" in reasons[1], "is a folder" in reasons[2]] == [True] * 3


def test_the_end_of_a_stream_waits_for_files_that_lie_there(tmp_path, make):
    folder_watch = make(tmp_path / "*.cxi", settle_s=0.2)
    whole(tmp_path / "scan_1.cxi")
    folder_watch.ask(Wish(2, FinishStream()))
    assert [type(each) for each in commands(until(folder_watch, 2))] == [Arrived, FinishStream]


def test_the_end_of_a_stream_waits_for_a_file_that_came_while_others_were_read(tmp_path, make):
    for number in range(3):
        os.truncate(whole(tmp_path / f"scan_{number}.cxi").path, number * 2**26 or 2**12)  # takes a while
    folder_watch = make(tmp_path / "*.cxi")
    first = until(folder_watch, 1)
    whole(tmp_path / "scan_3.cxi")
    folder_watch.ask(Wish(1, FinishStream()))
    *found, last = [*first, *until(folder_watch, 5 - len(first))]
    assert names(found) == [f"scan_{number}" for number in range(4)]
    assert isinstance(last.command, FinishStream)


def test_what_holds_up_the_end_of_a_stream_is_said(tmp_path, make):
    folder_watch = make(tmp_path / "*.cxi", settle_s=60, say_s=0.05)
    whole(tmp_path / "scan_1.cxi")
    folder_watch.ask(Wish(1, FinishStream()))
    (said,) = commands(until(folder_watch, 1))
    assert "the end of the stream waits for" in said.text
    assert "scan_1.cxi" in said.text


def test_a_pattern_that_matches_nothing_says_so_once(tmp_path, make):
    folder_watch = make(tmp_path / "*.cxi", say_s=0.05)
    (said,) = until(folder_watch, 1)
    assert "nothing has matched" in said.command.text
    whole(tmp_path / "scan_1.cxi")
    assert [type(each) for each in commands(until(folder_watch, 1))] == [Arrived]


def large(path) -> Arrived:
    """An hour of reading; takes no room on disk."""
    arrived = whole(path)
    os.truncate(path, 2**40)
    return arrived


def test_a_file_of_many_blocks_has_the_digest_of_its_bytes(tmp_path):
    path = tmp_path / "many.h5"
    path.write_bytes(os.urandom(5 * BLOCK + 3))
    read: list[int] = []
    digest, facts = digest_of(path, go_on=lambda count: read.append(count) or True)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts.size == read[-1] == 5 * BLOCK + 3


def test_no_step_is_held_up_for_a_large_file_nor_for_what_is_asked_while_it_is_read(tmp_path, make):
    folder_watch, took = make(), []
    path = large(tmp_path / "large.h5")
    for number in range(10):
        folder_watch.ask(Wish(1 + number, path))
        began = time.monotonic()
        assert folder_watch.poll() == []
        took.append(time.monotonic() - began)
    assert sum(took) < 10 * SHORT_S / 2


def test_the_end_of_a_rank_does_not_wait_for_a_large_file(tmp_path, make):
    folder_watch = make(say_s=0.1)
    folder_watch.ask(Wish(1, large(tmp_path / "large.h5")))
    assert isinstance(commands(until(folder_watch, 1))[0], Note)  # that it is being read
    began = time.monotonic()
    folder_watch.close()
    assert time.monotonic() - began < 4


def test_a_file_that_cannot_be_read_is_said_to_be_so():
    with pytest.raises(ScanError, match=r"/proc/self/mem: cannot be read: Input/output error; copy it anew"):
        digest_of("/proc/self/mem")


def test_a_file_that_takes_long_to_read_is_said_to_be_read(tmp_path, make):
    folder_watch, arrived = make(say_s=0.3), large(tmp_path / "large.h5")
    folder_watch.ask(Wish(1, arrived))
    (note,) = commands(until(folder_watch, 1))
    assert isinstance(note, Note)
    assert "large.h5 is being read: " in note.text
    assert "of 1048576 MiB" in note.text
