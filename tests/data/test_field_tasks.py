"""Datasets of somebody's own file are a task: from `open_task` to samples, and through a watched folder."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import h5py
import numpy as np
import pytest

from rehearsal_kit.base.errors import NotYetError, SettingsError, TaskError
from rehearsal_kit.base.plain_values import with_tuples
from rehearsal_kit.data.experience import NUMBER
from rehearsal_kit.data.field_tasks import open_task
from rehearsal_kit.data.folder_watch import FolderWatch
from rehearsal_kit.data.open_experience import Shelf
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.record.commands import Arrived, Watch
from rehearsal_kit.record.task_fields import TaskFields

COUNT = 50
CHOSEN = {"inputs": "/entry/images", "targets": {"label": "/entry/classes"}, "group": "label"}


def values():
    random = np.random.default_rng(0)
    return {
        "/entry/images": random.random((COUNT, 1, 8, 8), np.float32),
        "/entry/classes": np.arange(COUNT) % 5,
        "/held": np.arange(COUNT) % 4 == 0,
    }


@pytest.fixture(params=["h5", "npz"])
def path(request, tmp_path):
    """The same arrays in a file of either kind; an archive has no groups, but slashes in names."""
    path = tmp_path / f"own.{request.param}"
    if request.param == "npz":
        np.savez(path, **{name.strip("/"): array for name, array in values().items()})
        return path
    with h5py.File(path, "w") as file:
        for name, array in values().items():
            file[name] = array
    return path


def opened(arrived):
    return Shelf().opened(arrived, Preparation())


def test_samples_are_those_of_the_file_and_nothing_is_in_two_splits(path):
    experience = opened(open_task(path, **CHOSEN, test="/held"))
    assert (experience.inputs, experience.group, experience.raw_shape) == ("images", "label", (1, 8, 8))
    seen = []
    for split in ("training", "watched", "test"):
        samples = experience.load(split, np.arange(experience.count(split))[::-1])
        numbers = samples[NUMBER].numpy()
        np.testing.assert_array_equal(samples["images"], values()["/entry/images"][numbers])
        np.testing.assert_array_equal(samples["label"], values()["/entry/classes"][numbers])
        assert (values()["/held"][numbers] == (split != "training")).all()
        seen += numbers.tolist()
    assert sorted(seen) == list(range(COUNT))
    assert [experience.count(split) for split in ("watched", "test")] == [2, 11]


def test_a_share_is_drawn_the_same_ones_each_time_and_not_the_last_ones(path):
    one, two = (opened(open_task(path, **CHOSEN, test=0.2)) for _ in range(2))
    numbers = [each.load("test", np.arange(each.count("test")))[NUMBER].tolist() for each in (one, two)]
    assert numbers[0] == numbers[1]
    assert one.count("watched") + one.count("test") == 10
    assert one.count("training") == 40
    assert np.ptp(numbers[0]) > 20


def test_without_names_fields_are_called_as_their_datasets(path):
    fields = TaskFields(inputs="/entry/images", targets="/entry/classes")
    assert fields.names == {"images": "/entry/images", "classes": "/entry/classes"}
    assert TaskFields(inputs="a", targets=["b/x", "c/y"]).targets == {"x": "b/x", "y": "c/y"}


@pytest.mark.parametrize("kind", [Arrived, Watch])
def test_a_command_is_the_same_after_it_was_written_down(kind):
    fields = TaskFields(inputs="/x", targets={"label": "/y"}, test="/held")
    words = {"name": "a", "path": "/a"} if kind is Arrived else {"pattern": "/a*"}
    command = kind(**words, fields=fields)
    assert kind(**with_tuples(json.loads(json.dumps(asdict(command))))) == command


def test_files_of_a_watched_folder_are_tasks_of_these_fields(tmp_path):
    watch = FolderWatch(interval_s=0.01, settle_s=0.0)
    fields = TaskFields(**CHOSEN)
    try:
        watch.watch(str(tmp_path / "*.npz"), fields=fields)
        np.savez(tmp_path / "unfinished", **{name.strip("/"): each for name, each in values().items()})
        (tmp_path / "unfinished.npz").rename(tmp_path / "part_1.npz")
        found, deadline = [], time.monotonic() + 10
        while not found and time.monotonic() < deadline:
            found = watch.poll()
            time.sleep(0.002)
    finally:
        watch.close()
    arrived = found[0].command
    assert (arrived.name, arrived.fields) == ("part_1", fields)
    assert opened(arrived).count("training") == 40


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"targets": {"label": "/missing"}}, "there is no .*missing"),
        ({"inputs": "/short"}, r"/short has 7, /entry/classes has 50; there must be as many"),
        ({"targets": {"label": "/words"}, "group": None}, "it must hold numbers"),
        (
            {"targets": {"label": "/entry/images"}},
            r"the group /entry/images is float32 of shape \(50, 1, 8, 8\)",
        ),
        ({"targets": {"number": "/entry/classes"}, "group": None}, "no field may be called number"),
        ({"test": "/none"}, "of 50 samples 0 are for tests .* none is left for watched, test"),
        ({"test": "/all"}, "none is left for training"),
        ({"test": "/short"}, r"/short is int64 of shape \(7,\)"),
        ({"test": "/entry/images"}, r"dtype kind one of 'biu'\) of shape \(50,\)"),
    ],
)
def test_what_cannot_be_a_task_is_refused_with_the_reason(tmp_path, changes, says):
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        for name, array in values().items():
            file[name] = array
        file["/short"], file["/words"] = np.arange(7), [b"a"] * COUNT
        file["/none"], file["/all"] = np.zeros(COUNT, bool), np.ones(COUNT, bool)
    with pytest.raises(TaskError, match=says):
        open_task(path, **(CHOSEN | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ""}, "inputs is ''; it must be the path"),
        ({"targets": {}}, "there must be at least one target"),
        ({"targets": 3}, "there must be at least one target"),
        ({"targets": ["/a/images"], "group": None}, "each field needs a name of its own"),
        ({"targets": {"two words": "/x"}, "group": None}, "each field needs a name of its own"),
        ({"group": "images"}, "group is 'images'; it must be one of the targets label"),
        ({"test": 0.0}, "test is 0.0; it must be a finite number from 0.001 to 0.999"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, changes, says):
    with pytest.raises(SettingsError, match=says):
        open_task(tmp_path / "own.h5", **(CHOSEN | changes))


def test_a_file_that_is_not_there_yet_says_so(tmp_path):
    with pytest.raises(NotYetError, match="there is no such file"):
        open_task(tmp_path / "own.h5", **CHOSEN)
