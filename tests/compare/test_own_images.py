"""A stream of somebody's own images: what is read of a file, what is refused, and which tasks it becomes."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest

from rehearsal_kit.base.errors import DatasetError, RunFolderError, ScanError, SettingsError
from rehearsal_kit.compare.command import _folder, _stream
from rehearsal_kit.compare.own_images import OwnImages, own_stream
from rehearsal_kit.compare.streams import Place
from rehearsal_kit.data.open_experience import open_experience
from rehearsal_kit.data.preparation import Preparation

COUNT = 70


def arrays(**changes):
    random = np.random.default_rng(0)
    made = {
        "images": random.integers(0, 255, (COUNT, 9, 8), dtype=np.uint8),
        "labels": np.arange(COUNT) % 4,
        **changes,
    }
    return {name: array for name, array in made.items() if array is not None}


def file_of(folder, **changes):
    path = folder / "mine.npz"
    np.savez(path, **arrays(**changes))
    return path


def test_images_without_channels_and_tests_are_parted(tmp_path):
    own, given = OwnImages.read(file_of(tmp_path)), arrays()
    assert own.images.dtype == np.float32
    assert own.images.shape == (62, 1, 9, 8)
    for label in range(4):
        mine = given["images"][given["labels"] == label]
        assert np.array_equal(own.test_images[own.test_labels == label][:, 0], mine[6::7])
    assert len(own.labels) + len(own.test_labels) == COUNT


def test_tests_that_are_there_are_taken_as_they_are(tmp_path):
    colour = np.ones((5, 3, 8, 8), np.float32)
    path = file_of(
        tmp_path,
        images=np.zeros((9, 3, 8, 8), np.float32),
        labels=np.arange(9) % 3,
        test_images=colour,
        test_labels=np.array([0, 1, 2, 1, 0]),
    )
    own = OwnImages.read(path)
    assert (own.images.shape, own.test_images.shape) == ((9, 3, 8, 8), (5, 3, 8, 8))
    assert np.array_equal(own.test_images, colour)


def test_it_becomes_tasks_of_classes_with_a_network_that_fits(tmp_path):
    stream = own_stream(file_of(tmp_path), classes_per_task=2)
    tasks = stream.lay_out(Place(folder=tmp_path, data=None, seed=0, size=32))
    assert [task.name for task in tasks] == ["classes 0, 1", "classes 2, 3"]
    assert sum(open_experience(task, Preparation()).count("training") for task in tasks) == 62
    network = stream.small(0)
    assert (network.arguments["channels"], network.arguments["classes"]) == (1, 4)
    assert stream.shape == (1, 9, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"labels": None},
        {"images": np.zeros((COUNT, 7, 7), np.float32)},
        {"images": np.zeros((COUNT, 8), np.float32)},
        {"images": np.full((COUNT, 8, 8), np.nan, np.float32)},
        {"images": np.zeros((0, 8, 8), np.float32), "labels": np.zeros(0, int)},
        {"labels": np.arange(COUNT - 1)},
        {"labels": np.arange(COUNT) / 2},
        {"labels": np.arange(COUNT) - 1},
        {"images": np.full((COUNT, 8, 8), 1e300)},
    ],
    ids=[
        "no images",
        "no labels",
        "too small",
        "vectors",
        "no numbers",
        "none",
        "too few labels",
        "fractions",
        "below 0",
        "too large for the network",
    ],
)
def test_what_is_no_stream_is_refused_with_what_came(tmp_path, changes):
    path = file_of(tmp_path, **changes)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(path))} has .*a stream needs images of finite"):
        OwnImages.read(path)


def test_tests_without_their_labels_are_refused(tmp_path):
    path = file_of(tmp_path, test_images=np.zeros((3, 8, 8)))
    with pytest.raises(DatasetError, match="a stream needs test_images of finite"):
        OwnImages.read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.arange(COUNT) * 1000}, "labels up to 69000 for 70 images; number the classes from 0"),
        ({"labels": (np.arange(COUNT) == 9).astype(int)}, "one image of class 1; a class needs two"),
        (
            {"test_images": np.zeros((3, 9, 9)), "test_labels": np.arange(3)},
            r"images \(1, 9, 8\) and test_images \(1, 9, 9\)",
        ),
    ],
    ids=["labels", "one image", "other tests"],
)
def test_classes_that_cannot_be_learned_and_tested_are_refused(tmp_path, changes, words):
    with pytest.raises(DatasetError, match=words):
        OwnImages.read(file_of(tmp_path, **changes))


def test_every_class_has_a_test_however_few_there_are(tmp_path):
    labels = np.repeat([0, 1, 2], [60, 7, 3])
    own = OwnImages.read(file_of(tmp_path, labels=labels))
    assert np.bincount(own.test_labels).tolist() == [8, 1, 1]


def test_nothing_in_a_file_is_unpickled(tmp_path):
    path = tmp_path / "pickled.npz"
    np.savez(path, images=np.array([object()], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(ScanError):
        OwnImages.read(path)


def test_another_file_of_the_same_name_is_another_comparison(tmp_path):
    """Else outcomes of the one would stand beside those of the other."""
    settings = {"workers": 2, "full": False}
    stream = own_stream(file_of(tmp_path), classes_per_task=2)
    assert _folder(tmp_path / "run", stream, **settings) == _folder(tmp_path / "run", stream, **settings)
    others = [
        own_stream(file_of(tmp_path), classes_per_task=1),
        own_stream(file_of(tmp_path, labels=(np.arange(COUNT) + 1) % 4), classes_per_task=2),
    ]
    for other in others:
        with pytest.raises(RunFolderError, match="holds something else"):
            _folder(tmp_path / "run", other, **settings)


def asked(stream, classes=None):
    return _stream(argparse.Namespace(stream=stream, classes_per_task=classes))


def test_streams_are_asked_for_by_name_or_file(tmp_path):
    path = file_of(tmp_path)
    assert asked("fashion").name == "fashion"
    assert asked(str(path), 1).title == "mine.npz, 1 classes a task"
    assert asked(str(path)).title == "mine.npz, 2 classes a task"
    with pytest.raises(SettingsError, match=r"'cats' is unknown; known are fashion, .*ends in \.npz"):
        asked("cats")
    with pytest.raises(SettingsError, match="classes-per-task is 2, but fashion has its own tasks"):
        asked("fashion", 2)
    with pytest.raises(SettingsError, match="classes-per-task is 0"):
        asked(str(path), 0)
