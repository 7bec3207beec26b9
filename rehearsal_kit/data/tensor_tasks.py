"""Tensors as a task: split by whoever brings them, written once to HDF5, read by the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError, SettingsError, TaskError
from rehearsal_kit.base.files import written_whole
from rehearsal_kit.base.randomness import generator
from rehearsal_kit.buffer.row_layout import IDENTITY, RowLayout, Samples, tensor_of
from rehearsal_kit.data.experience import NUMBER, SPLITS, Indices
from rehearsal_kit.data.scans.doors.hdf5 import attribute, dataset_of, find, opened, opened_once
from rehearsal_kit.record.commands import Arrived

Array = torch.Tensor | NDArray[Any]
Labelled = tuple[Array, Array]
"""Inputs (sample, ...) and labels, integers (sample,)."""

FORMAT = "rehearsal_kit_task"
VERSION = 1
WATCHED = 10
"""One in so many test samples is watched instead, in streams made of labelled tensors."""
RESERVED = (NUMBER, IDENTITY)
_WRITABLE = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
)
BLOCK = 2048
"""Samples read at once: h5py is slow at picking single ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorTask:
    """A task of named tensors, (sample, ...), with the same fields, shapes and dtypes in all three splits.

    Arrays of numpy are taken as well, of any dtype that numbers have; see `tensor_of`.
    SettingsError if they differ, a split has no samples, or `inputs` or `group` is no field.
    """

    name: str
    inputs: str
    """The field that goes into the network; all others are targets, met by outputs of the same name."""
    group: str | None = None
    """An integer field by which the buffer keeps quotas, such as the label; None: the task."""
    training: Samples = field(repr=False)
    watched: Samples = field(repr=False)
    """Plotted while the run goes on."""
    test: Samples = field(repr=False)
    """Samples for final tables only."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            fields = {n: tensor_of(t, f"task {self.name!r}: {n}") for n, t in getattr(self, split).items()}
            object.__setattr__(self, split, fields)
        expected = _described(self.training)
        for split in SPLITS:
            samples: Samples = getattr(self, split)
            if single := [name for name, tensor in samples.items() if not tensor.dim()]:
                raise SettingsError(
                    f"task {self.name!r}: {', '.join(single)} of {split} is a single number; every field "
                    "needs a first axis for the samples."
                )
            lengths = {len(tensor) for tensor in samples.values()}
            if _described(samples) != expected or len(lengths) != 1 or 0 in lengths:
                raise SettingsError(
                    f"task {self.name!r}: {split} has {_words(samples)} with {sorted(lengths)} samples, "
                    f"training has {_words(self.training)}; all splits need the same fields, shapes and "
                    "dtypes, all fields of a split equally many samples, and at least one."
                )
        allowed = (self.inputs, *((self.group,) if self.group is not None else ()))
        if unknown := [name for name in allowed if name not in expected]:
            raise SettingsError(
                f"task {self.name!r}: {unknown} is not among its fields {', '.join(expected)}; inputs and "
                "group each name one of them."
            )
        if self.group is not None and not _is_integer_each(*expected[self.group]):
            came = _words({self.group: self.training[self.group]})
            raise SettingsError(f"task {self.name!r}: the group is {came}; it must hold integers (sample,).")
        for name, (_, dtype) in expected.items():
            if dtype not in _WRITABLE or not name.isidentifier() or name in RESERVED:
                raise SettingsError(
                    f"task {self.name!r}: field {name!r} of {dtype} cannot be written; names must be words "
                    f"other than {', '.join(RESERVED)}, dtypes those that numpy has too: "
                    f"{', '.join(str(each).removeprefix('torch.') for each in _WRITABLE)}."
                )


def split_classes(
    images: Array,
    labels: Array,
    *,
    classes_per_task: int,
    test: Labelled,
    order: Sequence[int] | None = None,
) -> list[TensorTask]:
    """A class-incremental stream: every task brings classes that no earlier task had.

    One head and no task number at test time: the labels stay what they are.

    Args:
        images: (sample, ...), what goes into the network.
        labels: integers (sample,).
        classes_per_task: in each task; the last one takes what is left.
        test: images and labels that are never trained on; a tenth of each task's is watched.
        order: in which the classes come; default: ascending.

    Raises:
        SettingsError: tensors that do not fit together, or a class without test samples.
    """
    images, labels, test = _tensors(images, labels, test)
    present = labels.unique().tolist()
    classes = list(order) if order is not None else present
    if classes_per_task < 1 or sorted(classes) != present:
        raise SettingsError(
            f"classes_per_task is {classes_per_task} and order {classes}; the labels hold the classes "
            f"{present}, and order must name each of them once."
        )
    tasks = []
    for begin in range(0, len(classes), classes_per_task):
        chosen = torch.tensor(classes[begin : begin + classes_per_task])
        name = f"class{'es' if len(chosen) > 1 else ''} {', '.join(map(str, chosen.tolist()))}"
        mine, theirs = torch.isin(labels, chosen), torch.isin(test[1], chosen)
        tasks.append(
            labelled_task(name, (images[mine], labels[mine]), test=(test[0][theirs], test[1][theirs]))
        )
    return tasks


def split_instances(
    images: Array, labels: Array, *, tasks: int, test: Labelled, seed: int = 0
) -> list[TensorTask]:
    """An instance-incremental stream: every task brings new samples of all classes, dealt by the seed.

    images, labels, test: as for `split_classes`. SettingsError with fewer samples than tasks.
    """
    images, labels, test = _tensors(images, labels, test)
    if not 1 <= tasks <= min(len(labels), len(test[1])):
        raise SettingsError(
            f"tasks is {tasks}; there are {len(labels)} training and {len(test[1])} test samples."
        )
    dealt = generator(seed, "instances").permutation(len(labels))
    tested = generator(seed, "tested").permutation(len(test[1]))
    return [
        labelled_task(
            f"part {number + 1} of {tasks}",
            (images[dealt[number::tasks]], labels[dealt[number::tasks]]),
            test=(test[0][tested[number::tasks]], test[1][tested[number::tasks]]),
        )
        for number in range(tasks)
    ]


def labelled_task(name: str, training: Labelled, *, test: Labelled) -> TensorTask:
    """A task of images and labels with fields "image" and "label", quotas by label.

    Every tenth of the test samples is watched, the others are tested. SettingsError with fewer than two
    test samples, or without training samples.
    """
    images, labels, test = _tensors(*training, test)
    watched = torch.arange(len(test[1])) % WATCHED == 0
    fields = [
        {"image": images, "label": labels.to(torch.int64)}
        for images, labels in (
            (images, labels),
            (test[0][watched], test[1][watched]),
            (test[0][~watched], test[1][~watched]),
        )
    ]
    return TensorTask(name=name, inputs="image", group="label", **dict(zip(SPLITS, fields, strict=True)))


def write_task(task: TensorTask, path: str | Path) -> Arrived:
    """Write the task to a private HDF5 file (0600) that the ranks can read; returns its arrival."""
    with written_whole(Path(path)) as unfinished, h5py.File(unfinished, "w") as file:
        file.attrs[FORMAT] = VERSION
        file.attrs["inputs"] = task.inputs
        if task.group is not None:
            file.attrs["group"] = task.group
        for split in SPLITS:
            for name, tensor in getattr(task, split).items():
                file.create_dataset(f"{split}/{name}", data=tensor.detach().cpu().contiguous().numpy())
    return Arrived(name=task.name, path=str(Path(path).absolute()))


def is_tensor_task(file: h5py.File) -> bool:
    """Whether an open file was written by `write_task`."""
    return FORMAT in file.attrs


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorExperience:
    """The data that a file written by `write_task` brings."""

    simulated = False
    skipped = 0
    preparation = None

    name: str
    path: Path
    inputs: str
    group: str | None
    raw_shape: tuple[int, ...]
    counts: Mapping[str, int]

    def count(self, split: str) -> int:
        """Samples of a split."""
        return self.counts[split]

    def load(self, split: str, places: Indices) -> dict[str, torch.Tensor]:
        """Samples by their places in a split, (sample, ...), and "number", int64 (sample,).

        Raises:
            TaskError: a file that cannot be read any more.
        """
        places = np.asarray(places, np.int64)
        try:
            with opened(self.path) as file:
                fields = _fields(file, split)
                samples = {name: picked(data, places) for name, data in fields.items()}
        except (OSError, ScanError, TypeError, ValueError) as error:
            raise TaskError(f"{self.path}: {split} cannot be read: {error}; write the task again.") from error
        return {**samples, NUMBER: torch.from_numpy(places)}


def open_tensor_task(arrived: Arrived, *, file: h5py.File | None = None) -> TensorExperience:
    """Look at what `write_task` wrote; reads shapes only. file: the task's own, where it is open already.

    Raises:
        NotYetError: no such file, or one that its writer has not finished.
        TaskError: another version, a split that is missing or has no samples, fields of unequal length.
    """
    try:
        with opened_once(Path(arrived.path), file) as source:
            version, inputs, group = (attribute(source, name) for name in (FORMAT, "inputs", "group"))
            splits = [split for split in SPLITS if find(source, split)]
            shapes = {s: {n: d.shape for n, d in _fields(source, s).items()} for s in splits}
            groups = None if group is None else dataset_of(source, f"training/{group}")
            grouped = groups is None or (groups.ndim == 1 and groups.dtype.kind in "iu")
    except NotYetError:
        raise
    except ScanError as error:
        raise TaskError(f"{arrived.path}: cannot be read as a task: {error}") from error
    if not grouped:
        raise TaskError(f"{arrived.path}: its group {group} must hold one integer a sample.")
    lengths = {
        split: {shape[0] if shape else 0 for shape in fields.values()} for split, fields in shapes.items()
    }
    sound = set(lengths) == set(SPLITS) and all(len(n) == 1 and 0 not in n for n in lengths.values())
    inputs = str(inputs or "")
    if version != VERSION or not sound or inputs not in shapes.get("training", {}):
        raise TaskError(
            f"{arrived.path}: version {version}, inputs {inputs!r}, samples by split {lengths}; a task has "
            f"version {VERSION}, its inputs among its fields, and in each of {', '.join(SPLITS)} equally "
            "many samples of every field, at least one. Write it by write_task(...)."
        )
    if arrived.region is not None or arrived.held_out is not None:
        raise TaskError(f"{arrived.path}: region and held_out are for scans; this task is split already.")
    return TensorExperience(
        name=arrived.name,
        path=Path(arrived.path),
        inputs=inputs,
        group=None if group is None else str(group),
        raw_shape=shapes["training"][inputs][1:],
        counts={split: n.pop() for split, n in lengths.items()},
    )


def _fields(file: h5py.File, split: str) -> dict[str, h5py.Dataset]:
    """The fields of a split; ScanError for what is none, lies in another file, or is not made of numbers."""
    group = find(file, split)
    if not isinstance(group, h5py.Group):
        raise ScanError(f"{file.filename}: there is no group {split}.")
    fields = {name: dataset_of(file, f"{split}/{name}") for name in group}
    for name, dataset in fields.items():
        if dataset.dtype.kind not in "biufc":
            raise ScanError(
                f"{file.filename}: {split}/{name} is {dataset.dtype}; it must hold numbers or booleans."
            )
    return fields


def _described(samples: Samples) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in samples.items()}


def _is_integer_each(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return not shape and not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _words(samples: Samples) -> str:
    return ", ".join(map(str, RowLayout.of(samples).fields)) if samples else "no fields"


def _tensors(
    images: Array, labels: Array, test: Labelled
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    names = ("images", "labels", "test images", "test labels")
    made = [tensor_of(array, name) for array, name in zip((images, labels, *test), names, strict=True)]
    _require_labelled(made[0], made[1])
    _require_labelled(made[2], made[3])
    return made[0], made[1], (made[2], made[3])


def _require_labelled(images: torch.Tensor, labels: torch.Tensor) -> None:
    fractional = labels.is_floating_point() or labels.is_complex()
    if labels.dim() != 1 or fractional or not images.dim() or len(images) != len(labels):
        raise SettingsError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)} for images of shape "
            f"{tuple(images.shape)}; there must be one integer for each image."
        )
    if len(labels) and int(labels.min()) < 0:
        raise SettingsError(f"the smallest label is {int(labels.min())}; classes are counted from 0.")


def picked(data: Any, places: Indices) -> torch.Tensor:
    """The rows of a dataset in the order of `places`, read block by block."""
    # In the byte order of this machine: torch takes no other.
    picked = np.empty((len(places), *data.shape[1:]), data.dtype.newbyteorder("="))
    blocks = places // BLOCK
    for block in np.unique(blocks):
        here = blocks == block
        begin = int(block) * BLOCK
        picked[here] = data[begin : begin + BLOCK][places[here] - begin]
    return torch.from_numpy(picked)
