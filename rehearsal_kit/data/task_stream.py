"""The tasks that have arrived, as one rank sees them: its shards and its part of what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from rehearsal_kit.base.errors import AlreadyTaskError, RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.row_layout import IDENTITY, Samples, joined
from rehearsal_kit.data.experience import NUMBER, Experience, shard
from rehearsal_kit.data.folder_order import is_same_file
from rehearsal_kit.record.commands import Arrived

NUMBER_BITS = 40
"""Bits of a `sample_id` that say which sample of its task it is; those above them are the task's number."""
EVALUATION_BATCH = 256
MOST_LOOKED_AT = 65
"""Samples that are searched for one to show: a scan in which the shutter was closed has thousands without."""
LOOKED_AT = 16
"""Samples of a search for one to show that are read at once: a scan's object is then read once for all."""


class TaskStream:
    """Tasks numbered from 0 in order of arrival; one that was set aside keeps its number.

    Samples are read and experiences opened anew whenever they are asked for, so that memory does not grow
    with the stream.
    """

    def __init__(self, groups: ProcessGroups, *, seed: int) -> None:
        self._groups = groups
        self._seed = seed
        self._arrivals: list[Arrived] = []
        self._order: list[int] = []
        self._experiences: list[Experience | None] = []
        self._shown: tuple[Experience, Samples | None] | None = None
        """The sample that was shown last, and of which task: it is read once."""

    def __len__(self) -> int:
        """Tasks arrived so far."""
        return len(self._experiences)

    def __getitem__(self, task: int) -> Experience | None:
        """A task, or None if it was set aside."""
        return self._experiences[task]

    @property
    def arrivals(self) -> list[tuple[Arrived, bool]]:
        """How each task arrived, and whether it was set aside."""
        gone = [experience is None for experience in self._experiences]
        return list(zip(self._arrivals, gone, strict=True))

    def append(self, arrived: Arrived, experience: Experience | None) -> int:
        """Take in the next task; returns its number."""
        self._arrivals.append(arrived)
        self._order.append(len(self._order))
        self._experiences.append(experience)
        return len(self._experiences) - 1

    def require_new(self, arrived: Arrived) -> None:
        """AlreadyTaskError if this file, by whatever whole name, is a task that was not set aside."""
        for task, (before, experience) in enumerate(zip(self._arrivals, self._experiences, strict=True)):
            if experience is not None and is_same_file(replace(before, path=str(experience.path)), arrived):
                raise AlreadyTaskError(
                    f"{arrived.path} is task {task} already ({before.name}); the same file becomes a task "
                    "again only after that was set aside, or once its content has changed."
                )

    def next_from(self, task: int) -> int:
        """The first task from this one on that was not set aside; the length of the stream if there is none.

        Nothing may depend on whether somebody has passed over those before it: that is not written down.
        """
        while task < len(self._experiences) and self._experiences[task] is None:
            task += 1
        return task

    def count_until(self, task: int) -> int:
        """How many tasks there are up to this one, itself included, without those set aside."""
        return task + 1 - self._experiences[: task + 1].count(None)

    @property
    def order(self) -> list[int]:
        """Number as which each task arrived, counted from 0."""
        return list(self._order)

    def reorder(self, first: int, order: Sequence[int]) -> None:
        """Number the tasks from `first` on anew: these, in this order."""
        self._arrivals[first:] = [self._arrivals[task] for task in order]
        self._experiences[first:] = [self._experiences[task] for task in order]
        self._order[first:] = [self._order[task] for task in order]

    def arrived_as(self, order: Sequence[int]) -> None:
        """Say as which each task arrived, where they were appended in another order."""
        self._order = list(order)

    def become(self, other: TaskStream) -> None:
        """The tasks of another stream, as they are there."""
        self._arrivals, self._order = list(other._arrivals), list(other._order)
        self._experiences = list(other._experiences)

    def take_order_of(self, other: TaskStream) -> None:
        """Number all tasks as there."""
        self.reorder(0, [self._order.index(number) for number in other.order])

    def ordered(self, order: Sequence[int]) -> TaskStream:
        """The same tasks in an order that was theirs before, and behind them what arrived since."""
        stream = TaskStream(self._groups, seed=self._seed)
        for arrived, experience in zip(self._arrivals, self._experiences, strict=True):
            stream.append(arrived, experience)
        stream.arrived_as(self._order)
        later = sorted(set(self._order) - set(order))
        stream.reorder(0, [self._order.index(number) for number in (*order, *later)])
        return stream

    def inputs(self, task: int) -> str:
        """The field of a task's samples that goes into the network."""
        experience = self._experiences[task]
        assert experience is not None  # noqa: S101 - for the type checker; the caller has looked
        return experience.inputs

    def set_aside(self, task: int) -> None:
        """Forget what the task brings."""
        self._experiences[task] = None

    def training_samples(self, tasks: Iterable[int], *, of: tuple[int, int] | None = None) -> Samples:
        """This rank's shards of these tasks, one after the other, each sample with its `sample_id`.

        of: another rank and number of ranks to deal them out for.
        """
        rank, ranks = of or (self._groups.rank, self._groups.ranks)
        parts = [self._shard(task, rank, ranks) for task in tasks if self._experiences[task] is not None]
        return joined(parts)

    def held_out(self, task: int, split: str, *, most: int | None = None) -> Iterator[Samples]:
        """This rank's part of the "watched" or "test" samples of a task, in batches.

        most: of the first so many of all ranks together; None: of all.
        """
        experience = self._experiences[task]
        if experience is None:
            return
        count = experience.count(split)
        mine = np.arange(self._groups.rank, count if most is None else min(count, most), self._groups.ranks)
        for at in range(0, len(mine), EVALUATION_BATCH):
            samples = experience.load(split, mine[at : at + EVALUATION_BATCH])
            del samples[NUMBER]
            yield samples

    def shown(self, task: int) -> Samples | None:
        """The watched sample of a task that previews show, (1, ...): the one with beam next to the middle.

        None if the task was set aside, its file cannot be read, or nothing that was looked at has beam. Its
        tensors must not be written to.
        """
        experience = self._experiences[task]
        if experience is None:
            return None
        if self._shown is None or self._shown[0] is not experience:
            try:
                self._shown = (experience, _lit(experience))
            except (RehearsalKitError, OSError):  # a preview is no reason to end a run; evaluation says why
                return None
        return self._shown[1]

    def _shard(self, task: int, rank: int, ranks: int) -> dict[str, torch.Tensor]:
        experience = self._experiences[task]
        assert experience is not None  # noqa: S101 - for the type checker; the caller has looked
        chosen = shard(experience, seed=self._seed, task=task, rank=rank, ranks=ranks)
        samples = experience.load("training", chosen)
        numbers = samples.pop(NUMBER)
        return {**samples, IDENTITY: (task << NUMBER_BITS) + numbers}


def _lit(experience: Experience) -> Samples | None:
    """The watched sample with beam next to the middle; of very many, some spread over all are tried."""
    watched = experience.count("watched")
    # From the middle outwards: neither the first nor the last frames are typical.
    places = np.array(sorted(range(watched), key=lambda place: abs(2 * place - watched)), np.int64)
    if len(places) > MOST_LOOKED_AT:
        places = places[np.linspace(0, len(places) - 1, MOST_LOOKED_AT).astype(np.int64)]
    for some in (places[:1], *(places[at : at + LOOKED_AT] for at in range(1, len(places), LOOKED_AT))):
        samples = experience.load("watched", some)
        if len(samples[NUMBER]):
            return {name: tensor[:1].clone() for name, tensor in samples.items()}
    return None
