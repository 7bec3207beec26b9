import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from rehearsal_kit.base.errors import NotYetError, ScanError, TaskError
from rehearsal_kit.data import open_experience
from rehearsal_kit.data.experience import SPLITS
from rehearsal_kit.data.folder_watch import FolderWatch
from rehearsal_kit.data.open_experience import Shelf
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scans.doors import hdf5
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.record.commands import Arrived, Wish

UNFITTED = Preparation(size=16)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    beamline = Beamline(folder=tmp_path_factory.mktemp("scans"), scans=2, seed=1)
    return [Arrived(name=f"scan {number}", path=str(beamline.write(number))) for number in range(2)]


@pytest.fixture
def tensors(tmp_path):
    images, labels = torch.randn(24, 4), torch.arange(24) % 2
    (task,) = split_classes(images, labels, classes_per_task=2, test=(images, labels))
    return write_task(task, tmp_path / "task.h5")


@pytest.fixture
def openings(monkeypatch):
    """How often each HDF5 file was opened: every opening goes through this one door."""
    count = Counter()
    real = hdf5.open_regular

    def open_regular(path):
        count[str(path)] += 1
        return real(path)

    monkeypatch.setattr(hdf5, "open_regular", open_regular)
    return count


def came(arrived):
    """The task that rank 0's reader makes of a file."""
    watch = FolderWatch()
    try:
        watch.ask(Wish(1, arrived))
        found = []
        while not found:
            found = watch.poll()
        return found[0].command
    finally:
        watch.close()


@pytest.mark.parametrize("kind", ["a scan", "tensors"])
def test_a_file_is_opened_once_by_the_reader_once_by_each_rank_and_once_for_each_reading(
    scans, tensors, openings, kind
):
    arrived = came(scans[0] if kind == "a scan" else tensors)
    assert arrived.digest
    assert openings == {arrived.path: 1}
    experience = Shelf().opened(arrived, UNFITTED)
    assert openings == {arrived.path: 2}
    counts = [experience.count(split) for split in SPLITS]
    assert min(counts) > 0
    assert experience.raw_shape
    assert openings == {arrived.path: 2}
    for number, split in enumerate(SPLITS, 1):
        assert len(experience.load(split, np.arange(2))[experience.inputs]) == 2
        assert openings == {arrived.path: 2 + number}


def test_frames_that_do_not_fit_into_memory_together_are_read_in_one_opening(scans, openings, monkeypatch):
    experience = Shelf().opened(scans[0], UNFITTED)
    whole = experience.load("training", np.arange(40))
    openings.clear()
    monkeypatch.setattr("rehearsal_kit.data.scan_tasks.FRAME_BYTES", 1)
    parts = experience.load("training", np.arange(40))
    assert openings == {scans[0].path: 1}
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def copied(arrived, folder):
    return came(replace(arrived, path=str(shutil.copyfile(arrived.path, folder / "scan.cxi"))))


def meanwhile(monkeypatch, happens):
    """Let something happen to a file between its description and the reading of its object."""
    real = open_experience.split_scan

    def split_scan(*arguments, **named):
        happens()
        return real(*arguments, **named)

    monkeypatch.setattr(open_experience, "split_scan", split_scan)


def test_a_file_whose_place_another_takes_while_it_is_opened_is_read_as_one_and_found_out(
    scans, tmp_path, monkeypatch
):
    arrived = copied(scans[0], tmp_path)
    other = shutil.copyfile(scans[1].path, tmp_path / "other")
    expected = Shelf().opened(arrived, UNFITTED)
    expected.load("training", np.arange(2))
    meanwhile(monkeypatch, lambda: os.replace(other, arrived.path))
    shelf = Shelf()
    experience = shelf.opened(arrived, UNFITTED)
    assert experience.fitted == expected.fitted
    assert shelf.get(experience.key).unit == expected.shelf.get(expected.key).unit
    with pytest.raises(TaskError, match=r"scan\.cxi is not the file that it was"):
        experience.load("training", np.arange(2))


def test_a_file_that_vanishes_while_it_is_opened_or_read_is_found_out(scans, tmp_path, monkeypatch):
    arrived = copied(scans[0], tmp_path)
    experience = Shelf().opened(arrived, UNFITTED)
    real = open_experience.require_as_it_arrived
    with monkeypatch.context() as patch:  # gone when the samples are there, before the file is looked at
        patch.setattr(
            open_experience,
            "require_as_it_arrived",
            lambda *arguments: (os.unlink(arrived.path), real(*arguments))[1],
        )
        with pytest.raises(NotYetError, match="there is no such file"):
            experience.load("training", np.arange(2))
    arrived = copied(scans[0], tmp_path)
    meanwhile(monkeypatch, lambda: os.unlink(arrived.path))
    with pytest.raises(NotYetError, match="there is no such file"):
        Shelf().opened(arrived, UNFITTED).load("training", np.arange(2))


def test_what_is_no_hdf5_is_refused_in_words(tmp_path):
    path = tmp_path / "notes.h5"
    path.write_text("no HDF5")
    with pytest.raises(ScanError, match=r"notes\.h5: is not an HDF5 file"):
        open_experience.open_experience(Arrived(name="a", path=str(path)), UNFITTED)
