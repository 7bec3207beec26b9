"""Somebody's own file as a task: the datasets that were named, split into what is trained on and what is
not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError, TaskError
from rehearsal_kit.base.randomness import generator
from rehearsal_kit.data.experience import NUMBER, SPLITS, Indices
from rehearsal_kit.data.scans.doors.scan_file import Dataset, ScanFile, opened_scan
from rehearsal_kit.data.tensor_tasks import RESERVED, WATCHED, picked
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.record.task_fields import TaskFields


def open_task(
    path: str | Path,
    *,
    inputs: str,
    targets: Mapping[str, str] | Sequence[str] | str,
    group: str | None = None,
    test: str | float = 0.2,
) -> Arrived:
    """A task of the datasets of a file, for `Session.submit`; what they hold is read when it is trained.

    Args:
        path: HDF5 or .npz, on a file system that the workers share.
        inputs: path of the dataset (sample, ...) that goes into the network.
        targets: paths of datasets (sample, ...), or these by the names of the network's outputs.
        group: name of the target with integers (sample,) by which the buffer keeps quotas, such as the label.
        test: path of a dataset (sample,) that is true where a sample is not trained on, or their share.

    Raises:
        NotYetError: there is no such file, or its writer has not finished.
        SettingsError: names that are none.
        TaskError: a dataset that is missing, holds no numbers, or has another number of samples.
    """
    fields = TaskFields(inputs=inputs, targets=targets, group=group, test=test)
    whole = Path(path).expanduser().absolute()
    arrived = Arrived(name=whole.stem, path=str(whole), fields=fields)
    with opened_scan(whole) as file:
        open_fields(arrived, file)
    return arrived


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldsExperience:
    """The data that datasets of somebody's file bring."""

    simulated = False
    skipped = 0
    preparation = None

    name: str
    path: Path
    fields: TaskFields
    roots: tuple[str, ...]
    raw_shape: tuple[int, ...]
    """Shape of one sample of the inputs."""
    places: Mapping[str, Indices] = field(repr=False)
    """The samples of each split, by their numbers in the file."""

    @property
    def inputs(self) -> str:
        """The field that goes into the network."""
        return next(iter(self.fields.names))

    @property
    def group(self) -> str | None:
        """The field by which the buffer keeps quotas; None: the task."""
        return self.fields.group

    def count(self, split: str) -> int:
        """Samples of a split."""
        return len(self.places[split])

    def load(self, split: str, places: Indices) -> dict[str, torch.Tensor]:
        """Samples by their places in a split, (sample, ...), and "number", int64 (sample,), that in the file.

        Raises:
            TaskError: a file that cannot be read any more.
        """
        numbers = self.places[split][np.asarray(places, np.int64)]
        try:
            with opened_scan(self.path, self.roots) as file:
                samples = {name: picked(file.dataset(at), numbers) for name, at in self.fields.names.items()}
        except (OSError, ScanError, TypeError, ValueError) as error:
            raise TaskError(f"{self.path}: {split} cannot be read: {error}; copy the file anew.") from error
        return {**samples, NUMBER: torch.from_numpy(numbers)}


def open_fields(arrived: Arrived, file: ScanFile, *, roots: Sequence[str] = ()) -> FieldsExperience:
    """The experience of the datasets that an arrival names; reads shapes only, and which samples are for
    tests.

    file: the arrival's own, open. roots: folders that links in it may lead to, beside its own.

    Raises:
        TaskError: a dataset that is missing, holds no numbers, or has another number of samples; a split
            without samples.
    """
    fields = arrived.fields
    assert fields is not None  # noqa: S101 - for the type checker; the caller has looked
    try:
        found = {name: file.dataset(at) for name, at in fields.names.items()}
        _require_fields(file.path, fields, found)
        count = len(next(iter(found.values())))
        tested = _tested(file, fields, count)
    except NotYetError:
        raise
    except ScanError as error:
        raise TaskError(f"{arrived.path}: cannot be read as a task: {error}") from error
    watched = np.zeros(count, bool)
    watched[np.flatnonzero(tested)[::WATCHED]] = True
    places = {
        split: np.flatnonzero(chosen)
        for split, chosen in zip(SPLITS, (~tested, watched, tested & ~watched), strict=True)
    }
    if empty := [split for split, numbers in places.items() if not len(numbers)]:
        raise TaskError(
            f"{arrived.path}: of {count} samples {int(tested.sum())} are for tests ({fields.test!r}), so "
            f"that none is left for {', '.join(empty)}; there must be one to train on, and two to test."
        )
    return FieldsExperience(
        name=arrived.name,
        path=Path(arrived.path),
        fields=fields,
        roots=tuple(roots),
        raw_shape=next(iter(found.values())).shape[1:],
        places=places,
    )


def _require_fields(path: Path, fields: TaskFields, found: Mapping[str, Dataset]) -> None:
    for name, dataset in found.items():
        at = fields.names[name]
        if dataset.dtype.kind not in "biufc" or not dataset.shape:
            raise TaskError(
                f"{path}: {at} is {dataset.dtype} of shape {dataset.shape}; it must hold numbers (sample, "
                "...)."
            )
        if name in RESERVED:
            raise TaskError(f"{path}: no field may be called {name}; give targets as {{name: path}}.")
    lengths = {fields.names[name]: len(dataset) for name, dataset in found.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{at} has {length}" for at, length in lengths.items())
        raise TaskError(f"{path}: its fields differ in their samples: {said}; there must be as many of each.")
    if fields.group is not None:
        group = found[fields.group]
        if group.ndim != 1 or group.dtype.kind not in "iu":
            raise TaskError(
                f"{path}: the group {fields.names[fields.group]} is {group.dtype} of shape {group.shape}; it "
                "must hold one integer a sample."
            )


def _tested(file: ScanFile, fields: TaskFields, count: int) -> NDArray[np.bool_]:
    """Which samples (sample,) are never trained on."""
    if isinstance(fields.test, str):
        tested: NDArray[np.bool_] = file.values(fields.test, shapes=((count,),), kinds="biu").astype(bool)
        return tested
    chosen = np.zeros(count, bool)
    # By the number of samples alone: the file has to give the same ones whenever, and wherever, it is opened.
    order = generator(0, "tested", count).permutation(count)
    chosen[order[: round(fields.test * count)]] = True
    return chosen
