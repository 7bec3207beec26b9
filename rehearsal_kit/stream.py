"""The tasks that have arrived, as one rank sees them: its shards and its part of what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from rehearsal_kit.arrivals import is_same_file
from rehearsal_kit.commands import Arrived
from rehearsal_kit.errors import AlreadyTaskError, RehearsalKitError
from rehearsal_kit.groups import Groups
from rehearsal_kit.layout import IDENTITY, Samples
from rehearsal_kit.tasks import NUMBER, Experience, shard

EVALUATION_BATCH = 256


class Stream:
    """Tasks numbered from 0 in order of arrival; one that was set aside keeps its number.

    Samples are read and experiences opened anew whenever they are asked for, so that memory does not grow
    with the stream.
    """

    def __init__(self, groups: Groups, *, seed: int) -> None:
        self._groups = groups
        self._seed = seed
        self._arrivals: list[Arrived] = []
        self._order: list[int] = []
        self._experiences: list[Experience | None] = []

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
        """AlreadyTaskError if this file, by whatever name, is a task that was not set aside."""
        for task, (before, experience) in enumerate(zip(self._arrivals, self._experiences, strict=True)):
            if experience is not None and is_same_file(before, arrived):
                raise AlreadyTaskError(
                    f"{arrived.path} is task {task} already ({before.name}); the same file becomes a task "
                    "again only after that was set aside, or once its content has changed."
                )

    @property
    def order(self) -> list[int]:
        """As which each task arrived, counted from 0."""
        return list(self._order)

    def reorder(self, first: int, order: Sequence[int]) -> None:
        """Number the tasks from `first` on anew: these, in this order."""
        self._arrivals[first:] = [self._arrivals[task] for task in order]
        self._experiences[first:] = [self._experiences[task] for task in order]
        self._order[first:] = [self._order[task] for task in order]

    def arrived_as(self, order: Sequence[int]) -> None:
        """Say as which each task arrived, where they were appended in another order."""
        self._order = list(order)

    def take_order_of(self, other: Stream) -> None:
        """Number all tasks as there."""
        self.reorder(0, [self._order.index(number) for number in other.order])

    def ordered(self, order: Sequence[int]) -> Stream:
        """The same tasks in an order that was theirs before, and behind them what arrived since."""
        stream = Stream(self._groups, seed=self._seed)
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
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def held_out(self, task: int, split: str) -> Iterator[Samples]:
        """This rank's part of the "watched" or "test" samples of a task, in batches."""
        experience = self._experiences[task]
        if experience is None:
            return
        mine = np.arange(self._groups.rank, experience.count(split), self._groups.ranks)
        for at in range(0, len(mine), EVALUATION_BATCH):
            samples = experience.load(split, mine[at : at + EVALUATION_BATCH])
            del samples[NUMBER]
            yield samples

    def shown(self, task: int) -> Samples | None:
        """The watched sample of a task that previews show, (1, ...): the one with beam next to the middle.

        None if the task was set aside, its file cannot be read, or nothing watched has beam.
        """
        experience = self._experiences[task]
        if experience is None:
            return None
        try:
            return _shown(experience)
        except (RehearsalKitError, OSError):  # a preview is no reason to end a run; evaluation says why
            return None

    def _shard(self, task: int, rank: int, ranks: int) -> dict[str, torch.Tensor]:
        experience = self._experiences[task]
        assert experience is not None  # noqa: S101 - for the type checker; the caller has looked
        chosen = shard(experience, seed=self._seed, task=task, rank=rank, ranks=ranks)
        samples = experience.load("training", chosen)
        numbers = samples.pop(NUMBER)
        return {**samples, IDENTITY: (task << 40) + numbers}


def _shown(experience: Experience) -> Samples | None:
    watched = experience.count("watched")
    # From the middle outwards: neither the first nor the last frames are typical.
    for place in sorted(range(watched), key=lambda place: abs(2 * place - watched)):
        sample = experience.load("watched", np.array([place]))
        if len(sample[NUMBER]):
            return sample
    return None
