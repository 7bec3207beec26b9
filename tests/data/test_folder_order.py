"""What a pattern means, and when a file is the one that arrived."""

from __future__ import annotations

import os
import shutil

import pytest

from rehearsal_kit.base.errors import NotYetError, ScanError, TaskError
from rehearsal_kit.data.folder_order import (
    is_same_file,
    matching,
    require_as_it_arrived,
    require_possible,
    with_digest,
)
from rehearsal_kit.record.commands import Arrived


def arrived_in(folder, name="a.cxi", content=b"abc", **changes) -> Arrived:
    (folder / name).write_bytes(content)
    return with_digest(Arrived(name="a", path=str(folder / name), **changes))


def test_the_digest_is_that_of_the_content(tmp_path):
    arrived = arrived_in(tmp_path)
    assert arrived.digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert arrived.size == 3


def test_what_is_no_file_is_never_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.cxi")
    (tmp_path / "folder.cxi").mkdir()
    for name, says in {
        "pipe.cxi": "is a named pipe",
        "folder.cxi": "is a folder",
        "/dev/zero": "is a device",
    }.items():
        with pytest.raises(ScanError, match=says):
            with_digest(Arrived(name="a", path=str(tmp_path / name)))
    with pytest.raises(NotYetError, match="no such file"):
        with_digest(Arrived(name="a", path=str(tmp_path / "none")))


def test_a_file_is_what_arrived_until_its_content_changes(tmp_path):
    arrived = arrived_in(tmp_path)
    require_as_it_arrived(arrived)
    copied = shutil.copyfile(arrived.path, tmp_path / "copy")
    os.replace(copied, arrived.path)  # other times, the same bytes: a moved folder, a restored archive
    known = require_as_it_arrived(arrived)
    assert known.modified != arrived.modified
    (tmp_path / "a.cxi").write_bytes(b"abd")
    with pytest.raises(TaskError, match=r"a\.cxi is not the file that it was: SHA-256 .*submit it again"):
        require_as_it_arrived(arrived, known)
    (tmp_path / "a.cxi").unlink()
    with pytest.raises(NotYetError, match="no such file"):
        require_as_it_arrived(arrived, known)


def test_one_file_is_one_whatever_it_is_called(tmp_path):
    arrived = arrived_in(tmp_path)
    for make in (os.link, os.symlink):
        make(arrived.path, tmp_path / "other")
        other = with_digest(Arrived(name="other", path=str(tmp_path / "other")))
        assert is_same_file(arrived, other)
        (tmp_path / "other").unlink()
    assert not is_same_file(arrived, arrived_in(tmp_path, "copy.cxi"))
    assert not is_same_file(arrived, arrived_in(tmp_path, region=(0.0, 1.0, 0.0, 1.0)))
    assert not is_same_file(arrived, arrived_in(tmp_path, content=b"new"))


def test_brackets_and_stars_in_names_are_what_they_are(tmp_path):
    folder = tmp_path / "2026-11 [grün]" / "day*"
    folder.mkdir(parents=True)
    for name in ("scan[4].cxi", "scan_10.cxi", "scan_9.cxi"):
        (folder / name).touch()
    assert matching(str(folder / "scan[4].cxi")) == [str(folder / "scan[4].cxi")]
    assert [os.path.basename(path) for path in matching(str(folder / "scan_*.cxi"))] == [
        "scan_9.cxi",
        "scan_10.cxi",
    ]
    assert len(matching(str(tmp_path / "*" / "day*" / "*.cxi"))) == 3


@pytest.mark.parametrize("below", ["not [there]/*.cxi", "missing/*.cxi", "missing/deep/*/x*.cxi"])
def test_a_pattern_below_a_folder_that_is_not_there_is_refused(tmp_path, below):
    with pytest.raises(ScanError, match=r"/(not \[there\]|missing) does not exist"):
        require_possible(str(tmp_path / below))


@pytest.mark.parametrize("below", ["*.cxi", "later_*/*.cxi", "nothing.cxi"])
def test_a_pattern_that_may_match_one_day_is_allowed(tmp_path, below):
    require_possible(str(tmp_path / below))
