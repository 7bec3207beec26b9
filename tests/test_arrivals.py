"""Watched files: whole ones only, in natural order, each once."""

from __future__ import annotations

import time

from rehearsal_kit.arrivals import Watcher, natural_key, with_digest, with_known
from rehearsal_kit.commands import Arrived, Watch

DEADLINE_S = 10


def poll_until(watcher: Watcher, count: int) -> list[Arrived]:
    found, deadline = [], time.monotonic() + DEADLINE_S
    while len(found) < count and time.monotonic() < deadline:
        found += watcher.poll()
    return found


def watching(folder, *, existing: bool = True, settle_s: float = 0.0) -> Watcher:
    watcher = Watcher(interval_s=0.0, settle_s=settle_s)
    command = with_known(Watch(pattern=str(folder / "*.cxi"), existing=existing))
    watcher.watch(command.pattern, known=command.known)
    return watcher


def test_files_come_in_natural_order_and_each_once(tmp_path):
    for number in (10, 9, 2):
        (tmp_path / f"scan_{number}.cxi").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    watcher = watching(tmp_path)
    assert [arrived.name for arrived in poll_until(watcher, 3)] == ["scan_2", "scan_9", "scan_10"]
    (tmp_path / "scan_11.cxi").write_text("x")
    assert [arrived.name for arrived in poll_until(watcher, 1)] == ["scan_11"]


def test_a_file_that_still_grows_has_not_arrived(tmp_path):
    watcher = watching(tmp_path, settle_s=0.3)
    deadline = time.monotonic() + 1.0
    with (tmp_path / "scan_1.cxi").open("w") as stream:
        while time.monotonic() < deadline:
            stream.write("more")
            stream.flush()
            assert watcher.poll() == []
    assert len(poll_until(watcher, 1)) == 1


def test_what_was_there_before_can_be_left_out(tmp_path):
    (tmp_path / "old.cxi").write_text("x")
    watcher = watching(tmp_path, existing=False)
    (tmp_path / "new.cxi").write_text("x")
    assert [arrived.name for arrived in poll_until(watcher, 1)] == ["new"]


def test_the_digest_is_that_of_the_content(tmp_path):
    path = tmp_path / "a.cxi"
    path.write_bytes(b"abc")
    arrived = with_digest(Arrived(name="a", path=str(path)))
    assert arrived.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_natural_key():
    assert sorted(["a10b2", "a9b10", "a9b9"], key=natural_key) == ["a9b9", "a9b10", "a10b2"]
