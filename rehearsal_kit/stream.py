"""The tasks that have arrived, as one rank sees them: its shards and its part of what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from rehearsal_kit.groups import Groups
from rehearsal_kit.layout import IDENTITY, Samples
from rehearsal_kit.tasks import NUMBER, Experience, shard

EVALUATION_BATCH = 256


class Stream:
    """Tasks numbered from 0 in order of arrival; one that was set aside keeps its number.

    Samples are read anew whenever they are asked for, so memory does not grow with the stream.
    """

    def __init__(self, groups: Groups, *, seed: int) -> None:
        self._groups = groups
        self._seed = seed
        self._experiences: list[Experience | None] = []

    def __len__(self) -> int:
        """Tasks arrived so far."""
        return len(self._experiences)

    def __getitem__(self, task: int) -> Experience | None:
        """A task, or None if it was set aside."""
        return self._experiences[task]

    def append(self, experience: Experience) -> int:
        """Take in the next task; returns its number."""
        self._experiences.append(experience)
        return len(self._experiences) - 1

    def inputs(self, task: int) -> str:
        """The field of a task's samples that goes into the network."""
        experience = self._experiences[task]
        assert experience is not None  # noqa: S101 - for the type checker; the caller has looked
        return experience.inputs

    def set_aside(self, task: int) -> None:
        """Forget what the task brings."""
        self._experiences[task] = None

    def training_samples(self, tasks: Iterable[int]) -> Samples:
        """This rank's shards of these tasks, one after the other, each sample with its `sample_id`."""
        parts = [self._shard(task) for task in tasks if self._experiences[task] is not None]
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
        """The watched sample of a task that previews show, (1, ...): the first with beam from the middle on.

        None if the task was set aside, or nothing watched has beam.
        """
        experience = self._experiences[task]
        if experience is None:
            return None
        watched = experience.count("watched")
        for place in range(watched // 2, watched):
            sample = experience.load("watched", np.array([place]))
            if len(sample[NUMBER]):
                return sample
        return None

    def _shard(self, task: int) -> dict[str, torch.Tensor]:
        experience = self._experiences[task]
        assert experience is not None  # noqa: S101 - for the type checker; the caller has looked
        rank, ranks = self._groups.rank, self._groups.ranks
        chosen = shard(experience, seed=self._seed, task=task, rank=rank, ranks=ranks)
        samples = experience.load("training", chosen)
        numbers = samples.pop(NUMBER)
        return {**samples, IDENTITY: (task << 40) + numbers}
