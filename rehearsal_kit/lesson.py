"""The mini-batches of one task on one rank, for all its epochs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from rehearsal_kit.layout import Samples
from rehearsal_kit.randomness import generator


@dataclass
class Lesson:
    """A rank's samples for a task, dealt into mini-batches; every epoch in another keyed order."""

    task: int
    samples: Samples
    """Named tensors (sample, ...); may be empty where there are fewer samples than ranks."""
    steps_per_epoch: int
    """ceil(largest shard / batch): the same on all ranks, however many samples each has."""
    epochs: int
    batch: int
    key: tuple[int, int]
    """Seed and rank."""
    began: int = 0
    """The step before its first mini-batch, or before it was begun again."""
    group: str | None = None
    """The field by which the buffer keeps quotas; None: the task."""
    taken: int = 0
    """Mini-batches taken so far."""
    seconds: float = 0.0
    """Spent in its training steps."""
    _order: tuple[int, torch.Tensor] | None = field(default=None, repr=False)
    """Of the epoch under way, which is the first number."""

    @property
    def steps(self) -> int:
        """Of all epochs together."""
        return self.steps_per_epoch * self.epochs

    @property
    def done(self) -> bool:
        """Whether every mini-batch was taken."""
        return self.taken >= self.steps

    def again(self, step: int) -> None:
        """Back to the first mini-batch, at this step."""
        self.taken, self.began = 0, step

    def next(self) -> Samples:
        """The next mini-batch; shorter at the end of an epoch, empty where the shard is used up."""
        epoch, place = divmod(self.taken, self.steps_per_epoch)
        self.taken += 1
        chosen = self._permutation(epoch)[place * self.batch : (place + 1) * self.batch]
        return {name: tensor[chosen] for name, tensor in self.samples.items()}

    def _permutation(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            seed, rank = self.key
            count = len(next(iter(self.samples.values())))
            order = generator(seed, "epoch", rank, self.task, epoch).permutation(count)
            self._order = (epoch, torch.from_numpy(order.astype(np.int64)))
        return self._order[1]
