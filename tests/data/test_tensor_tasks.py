"""Tensors as tasks: how they are split, what is refused, and that what is read is what was written."""

from __future__ import annotations

import stat

import h5py
import numpy as np
import pytest
import torch

from rehearsal_kit.base.errors import SettingsError, TaskError
from rehearsal_kit.data.tensor_tasks import (
    BLOCK,
    TensorTask,
    is_tensor_task,
    open_tensor_task,
    split_classes,
    split_instances,
    write_task,
)
from rehearsal_kit.record.commands import Arrived

CLASSES = 5


def labelled(per_class: int, offset: int = 0):
    """Images that are their own number, classes in turns."""
    labels = torch.arange(per_class * CLASSES) % CLASSES
    images = (torch.arange(len(labels)) + offset).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3).clone()
    return images, labels


def streams():
    training, test = labelled(20), labelled(10, offset=1000)
    return {
        "classes": split_classes(*training, classes_per_task=2, test=test),
        "instances": split_instances(*training, tasks=3, test=test, seed=1),
    }


def identities(task, *splits):
    return [int(number) for split in splits for number in getattr(task, split)["image"][:, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["classes", "instances"])
def test_every_sample_is_in_exactly_one_split_of_one_task(kind):
    tasks = streams()[kind]
    training = [number for task in tasks for number in identities(task, "training")]
    held_out = [number for task in tasks for number in identities(task, "watched", "test")]
    assert sorted(training) == list(range(100))
    assert sorted(held_out) == list(range(1000, 1050))
    for task in tasks:
        for split in ("training", "watched", "test"):
            samples = getattr(task, split)
            assert torch.equal(samples["label"], samples["image"][:, 0, 0, 0].long() % CLASSES)


def test_classes_come_in_order_and_never_again():
    tasks = streams()["classes"]
    assert [task.training["label"].unique().tolist() for task in tasks] == [[0, 1], [2, 3], [4]]
    assert [task.name for task in tasks] == ["classes 0, 1", "classes 2, 3", "class 4"]
    turned = split_classes(*labelled(20), classes_per_task=3, test=labelled(10), order=[4, 2, 0, 1, 3])
    assert [sorted(task.test["label"].unique().tolist()) for task in turned] == [[0, 2, 4], [1, 3]]


def test_instances_bring_all_classes_and_depend_on_the_seed():
    tasks = streams()["instances"]
    assert all(len(task.training["label"].unique()) == CLASSES for task in tasks)
    other = split_instances(*labelled(20), tasks=3, test=labelled(10), seed=2)
    assert identities(other[0], "training") != identities(tasks[0], "training")


def test_a_tenth_of_the_test_samples_is_watched_whatever_their_order():
    images, labels = labelled(40)
    by_class = torch.argsort(labels, stable=True)
    (task,) = split_classes(
        images, labels, classes_per_task=CLASSES, test=(images[by_class], labels[by_class])
    )
    assert len(task.watched["label"]) == 20
    assert len(task.watched["label"].unique()) == CLASSES


def test_arrays_do_as_well_as_tensors():
    images, labels = (tensor.numpy() for tensor in labelled(20))
    task = split_classes(images, labels, classes_per_task=2, test=(images, labels))[0]
    assert task.training["label"].dtype == torch.int64


def test_what_is_read_is_what_was_written(tmp_path):
    count = BLOCK + 300
    fields = {
        "x": torch.randn(count, 3, generator=torch.Generator().manual_seed(0)),
        "y": torch.arange(count, dtype=torch.int32),
    }
    few = {name: tensor[:7] for name, tensor in fields.items()}
    task = TensorTask(name="mine", inputs="x", training=fields, watched=few, test=few)
    arrived = write_task(task, tmp_path / "task.h5")
    assert stat.S_IMODE((tmp_path / "task.h5").stat().st_mode) == 0o600
    with h5py.File(arrived.path) as file:
        assert is_tensor_task(file)
    experience = open_tensor_task(arrived)
    assert (experience.name, experience.inputs, experience.group) == ("mine", "x", None)
    assert [experience.count(split) for split in ("training", "watched", "test")] == [count, 7, 7]
    places = np.random.default_rng(0).permutation(count)[:500]
    samples = experience.load("training", places)
    assert samples["number"].tolist() == places.tolist()
    assert torch.equal(samples["x"], fields["x"][places])
    assert torch.equal(samples["y"], fields["y"][places])
    assert samples["y"].dtype == torch.int32
    assert len(experience.load("test", np.zeros(0, np.int64))["x"]) == 0


GOOD = {"image": torch.zeros(4, 2), "label": torch.zeros(4, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training": {name: t[:0] for name, t in GOOD.items()}}, "training has .* at least one"),
        ({"watched": {"image": torch.zeros(4, 2)}}, "watched has"),
        ({"test": {**GOOD, "image": torch.zeros(4, 3)}}, "test has"),
        ({"test": {**GOOD, "image": torch.zeros(4, 2).double()}}, "test has"),
        ({"training": {**GOOD, "label": torch.zeros(3, dtype=torch.int64)}}, r"with \[3, 4\] samples"),
        ({"inputs": "picture"}, r"\['picture'\] is not among its fields image, label"),
        ({"group": "image"}, "must hold integers"),
        ({"training": {**GOOD, "label": GOOD["label"].bool()}, "group": "label"}, "test has|watched has"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(changes, says):
    values = {"name": "mine", "inputs": "image", "training": GOOD, "watched": GOOD, "test": GOOD}
    with pytest.raises(SettingsError, match=says):
        TensorTask(**{**values, **changes})


@pytest.mark.parametrize("name", ["sample_id", "number", "a/b"])
def test_names_that_mean_something_else_are_refused(name):
    fields = {**GOOD, name: torch.zeros(4)}
    with pytest.raises(SettingsError, match="names must be words other than number, sample_id"):
        TensorTask(name="mine", inputs="image", training=fields, watched=fields, test=fields)


def test_labels_that_are_none_are_refused():
    images, labels = labelled(4)
    test = (images, labels)
    with pytest.raises(SettingsError, match="one integer for each image"):
        split_classes(images, labels.float(), classes_per_task=2, test=test)
    with pytest.raises(SettingsError, match="one integer for each image"):
        split_instances(images[:-1], labels, tasks=2, test=test)
    with pytest.raises(SettingsError, match="smallest label is -1"):
        split_classes(images, labels - 1, classes_per_task=2, test=test)
    with pytest.raises(SettingsError, match="order must name each of them once"):
        split_classes(images, labels, classes_per_task=2, test=test, order=[0, 1, 2, 3])
    with pytest.raises(SettingsError, match=r"classes 2, 3.*watched has"):
        split_classes(images, labels, classes_per_task=2, test=(images[labels < 2], labels[labels < 2]))
    with pytest.raises(SettingsError, match="tasks is 0"):
        split_instances(images, labels, tasks=0, test=test)


def written(tmp_path, spoil):
    arrived = write_task(streams()["classes"][0], tmp_path / "task.h5")
    with h5py.File(arrived.path, "r+") as file:
        spoil(file)
    return arrived


def delete_test(file):
    del file["test"]


def empty_watched(file):
    for name in list(file["watched"]):
        shape = file["watched"][name].shape[1:]
        del file["watched"][name]
        file["watched"].create_dataset(name, shape=(0, *shape), dtype="f4")


def newer(file):
    file.attrs["rehearsal_kit_task"] = 99


def other_inputs(file):
    file.attrs["inputs"] = "picture"


@pytest.mark.parametrize("spoil", [delete_test, empty_watched, newer, other_inputs])
def test_a_file_that_is_no_whole_task_is_refused_with_what_it_holds(tmp_path, spoil):
    arrived = written(tmp_path, spoil)
    with pytest.raises(TaskError, match=r"task\.h5: version .* a task has version 1"):
        open_tensor_task(arrived)


def test_regions_are_for_scans(tmp_path):
    arrived = write_task(streams()["classes"][0], tmp_path / "task.h5")
    with pytest.raises(TaskError, match="region and held_out are for scans"):
        open_tensor_task(Arrived(name="a", path=arrived.path, region=(0.0, 1.0, 0.0, 1.0)))


def test_a_file_that_vanishes_says_so(tmp_path):
    arrived = write_task(streams()["classes"][0], tmp_path / "task.h5")
    experience = open_tensor_task(arrived)
    (tmp_path / "task.h5").unlink()
    with pytest.raises(TaskError, match=r"task\.h5: training cannot be read"):
        experience.load("training", np.arange(2))


# Whatever numbers ----------------------------------------------------------------------------------------


KINDS = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16", ">f4", ">u2")


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_kind_of_numbers_come_back_as_they_were(tmp_path, kind):
    array = np.arange(12).reshape(4, 3).astype(kind)[::-1, ::2]
    array.setflags(write=False)
    split = {"image": array, "label": np.arange(4)}
    task = TensorTask(name="mine", inputs="image", training=split, watched=split, test=split)
    experience = open_tensor_task(write_task(task, tmp_path / "task.h5"))
    back = experience.load("training", np.arange(4))["image"]
    np.testing.assert_array_equal(back.numpy(), array)
    torch.cat([back[:2], back[2:]])[torch.tensor([1, 0])]  # what every rank does with it


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array(["a", "b"]), r"image is ndarray of <U1; it must be a tensor or an array of numbers"),
        (np.zeros((2, 3), np.longdouble), "of at most 8 bytes"),
        (np.full((2, 3), 2**63, np.uint64), "uint64 and exceeds int64"),
        (torch.zeros(2, 3).to(torch.float8_e5m2), "float8_e5m2 cannot be written.*those that numpy has"),
        (torch.zeros(2, 3).bfloat16(), "bfloat16 cannot be written"),
        (torch.tensor(1.0), "image of training is a single number"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_words(array, says):
    split = {"image": array, "label": torch.tensor([0, 1])}
    with pytest.raises(SettingsError, match=says):
        TensorTask(name="mine", inputs="image", training=split, watched=split, test=split)


@pytest.mark.parametrize("labels", [torch.zeros(4, dtype=torch.complex64), torch.zeros(4)])
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    with pytest.raises(SettingsError, match="one integer for each image"):
        split_classes(torch.zeros(4, 2), labels, classes_per_task=1, test=(torch.zeros(4, 2), labels))


def test_a_group_that_the_file_does_not_hold_is_a_matter_of_the_task(tmp_path):
    task = TensorTask(name="mine", inputs="image", group="label", training=GOOD, watched=GOOD, test=GOOD)
    arrived = write_task(task, tmp_path / "task.h5")
    for group, says in (("nothing", "cannot be read as a task"), ("image", "must hold one integer")):
        with h5py.File(arrived.path, "r+") as file:
            file.attrs["group"] = group
        with pytest.raises(TaskError, match=says):
            open_tensor_task(arrived)


def altered(tmp_path, alter):
    """A written task in which something of its training images was changed."""
    arrived = write_task(streams()["classes"][0], tmp_path / "task.h5")
    with h5py.File(arrived.path, "r+") as file:
        shape = file["training/image"].shape
        del file["training/image"]
        alter(file["training"], shape)
    return arrived


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (
            lambda group, shape: group.create_dataset(
                "image", shape, "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            ),
            "takes its data from other files",
        ),
        (
            lambda group, shape: group.__setitem__("image", h5py.ExternalLink("/etc/passwd", "/x")),
            "link into another file",
        ),
        (
            lambda group, shape: group.create_dataset("image", (shape[0], 2**40), "f4", chunks=True),
            "claims|says",
        ),
        (lambda group, shape: group.create_dataset("image", data=["a"] * shape[0]), "must hold numbers"),
        (lambda group, shape: group.create_dataset("image", data=h5py.Empty("f4")), "without values"),
    ],
)
def test_a_task_file_may_not_lead_out_of_itself_or_claim_what_it_has_not(tmp_path, alter, says):
    arrived = altered(tmp_path, alter)
    with pytest.raises(TaskError, match=rf"task\.h5: .*{says}"):
        open_tensor_task(arrived)


def test_numbers_in_another_byte_order_are_the_same_numbers(tmp_path):
    arrived = altered(
        tmp_path, lambda group, shape: group.create_dataset("image", data=np.full(shape, 3, ">f4"))
    )
    samples = open_tensor_task(arrived).load("training", np.arange(2))
    assert samples["image"].dtype == torch.float32
    assert (samples["image"] == 3).all()
