"""The mini-batches of one task on one rank, for all its epochs.

A last sample that would be alone in its mini-batch joins the one before: batch norm has no variance of one
sample. So the last mini-batch of a shard may have one more than the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rehearsal_kit.base.randomness import generator
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.data.training_shard import TrainingShard

Dealing = tuple[int, int]
"""How an epoch was dealt out: number of ranks, and samples per rank passed while there were so many."""
_PLAIN = ("task", "batch", "began", "epoch", "place", "taken", "seconds", "largest")
_LATER = {"least_steps": 0}
"""What checkpoints of earlier versions do not say, and what it was then."""


@dataclass
class TaskLoader:
    """A rank's samples for a task, dealt into mini-batches; every epoch in another keyed order."""

    task: int
    tasks: Sequence[int]
    """Whose samples it is made of: that task, or also those before it."""
    shard: TrainingShard
    """Its samples; may be empty where there are fewer samples than ranks."""
    largest: int
    """Samples of the largest shard: all ranks take as many steps as that one needs."""
    epochs: int
    batch: int
    """New samples per step; may change between two mini-batches, on all ranks alike."""
    key: tuple[int, int]
    """Seed and rank."""
    least_steps: int = 0
    """Passes are added to those epochs until so many steps were taken."""
    began: int = 0
    """The step before its first mini-batch, or before it was begun again."""
    group: str | None = None
    """The field by which the buffer keeps quotas; None: the task."""
    epoch: int = 0
    """The epoch under way, from 0."""
    place: int = 0
    """Samples of every shard that were passed in this epoch."""
    taken: int = 0
    """Mini-batches taken so far."""
    seconds: float = 0.0
    """Spent in its training steps."""
    rest: TrainingShard | None = None
    """What is left of the epoch under way where that was begun on another number of ranks; in its order."""
    rest_begins: int = 0
    """The place of the first of these."""
    dealt: Sequence[Dealing] = ()
    """How the epoch under way was dealt out before that: one dealing for each other number of ranks."""
    groups: int | torch.Tensor = 0
    """The group of all samples of the mini-batch taken last, or of each: (sample,) in host memory."""
    _order: torch.Tensor | None = field(default=None, repr=False)
    """The order of the samples of the epoch under way."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch: the same on all ranks, however many samples each has."""
        return self._steps_from(0)

    @property
    def steps(self) -> int:
        """Steps of all epochs together, those taken included."""
        if self.done or not self.largest:
            return self.taken
        each = self.steps_per_epoch
        to_come = self._steps_from(self.place) + max(0, self.epochs - self.epoch - 1) * each
        missing = max(0, self.least_steps - self.taken - to_come)
        return self.taken + to_come + -(-missing // each) * each

    @property
    def done(self) -> bool:
        """Whether every mini-batch was taken, or enough of them."""
        at_its_end = self.place == 0 and self.rest is None
        return self.epoch >= self.epochs and self.taken >= self.least_steps and at_its_end

    def finish(self) -> None:
        """Take no more."""
        self.least_steps = 0
        self._go_to_epoch(max(self.epoch, self.epochs))

    def again(self, step: int) -> None:
        """Back to the first mini-batch, at this step."""
        self.taken, self.began = 0, step
        self._go_to_epoch(0)

    def resize(self, batch: int) -> None:
        """So many new samples per step from the next mini-batch on; all ranks call it alike."""
        self.batch = batch

    def measure(self, largest: int) -> None:
        """Learn the samples of the largest shard, and with it how many steps there are."""
        self.largest = largest

    def spend(self, seconds: float) -> None:
        """Count the time of a training step."""
        self.seconds += seconds

    def to_plain(self, *, ranks: int) -> dict[str, Any]:
        """Where in its task it is, as plain values; ranks: how many there are now. For `go_on`."""
        passed = self.place if self.rest is None else self.place - self.rest_begins
        values = {name: getattr(self, name) for name in _PLAIN}
        values |= {name: getattr(self, name) for name in _LATER}
        return {**values, "tasks": list(self.tasks), "dealings": [*self.dealt, (ranks, passed)]}

    def go_on(self, plain: Mapping[str, Any]) -> None:
        """Be where `to_plain` was called, on as many ranks as there were then."""
        for name in _PLAIN:
            setattr(self, name, plain[name])
        for name, earlier in _LATER.items():
            setattr(self, name, plain.get(name, earlier))
        self._order = None

    def go_on_with(self, rest: TrainingShard, *, longest: int, dealings: Sequence[Dealing]) -> None:
        """Go on with what is left of the epoch under way, dealt out anew to another number of ranks.

        rest: this rank's part, in its order. longest: samples of the longest part. dealings: all there were,
        the newest last.
        """
        self.rest, self.dealt, self._order = rest, tuple(dealings[:-1]), None
        self.rest_begins = self.largest - longest
        self.place = self.rest_begins + dealings[-1][1]
        if not longest:
            self._go_to_epoch(self.epoch + 1)

    def next(self) -> Samples:
        """The next mini-batch; shorter at the end of an epoch, empty where the shard is used up.

        On the device of the shard, but for `sample_id`, with which nothing is computed there.
        """
        shard, order, begin = self._under_way()
        left = len(order) - begin
        places = slice(begin, begin + (left if left == self.batch + 1 else min(left, self.batch)))
        self.taken += 1
        self.place += self.batch
        if self.ended_at(self.place):
            self._go_to_epoch(self.epoch + 1)
        samples, here = shard.batch(order, places)
        self.groups = self.task if self.group is None else here[self.group]
        return samples

    def ended_at(self, place: int) -> bool:
        """Whether an epoch is over there on all ranks: the largest shard has none left, or a joined one."""
        return self.largest - place <= 1

    def left(self) -> torch.Tensor:
        """Which of the samples are still to come in this epoch, in their order: int64 (sample,)."""
        _, order, begin = self._under_way()
        return order[begin:]

    def _under_way(self) -> tuple[TrainingShard, torch.Tensor, int]:
        """What this epoch is made of, the order of its samples, and the place of the first that is left."""
        shard, passed = self.shard, self.place
        if self.rest is not None:
            shard, passed = self.rest, self.place - self.rest_begins
        if self._order is None:
            self._order = self._order_of(len(shard)) if self.rest is None else torch.arange(len(shard))
        return shard, self._order, first_left(len(shard), passed)

    def _order_of(self, count: int) -> torch.Tensor:
        seed, rank = self.key
        order = generator(seed, "epoch", rank, self.task, self.epoch).permutation(count)
        return torch.from_numpy(order.astype(np.int64))

    def _go_to_epoch(self, epoch: int) -> None:
        self.epoch, self.place, self.rest, self.dealt, self._order = epoch, 0, None, (), None

    def _steps_from(self, place: int) -> int:
        return max(1, -(-(self.largest - 1 - place) // self.batch))


def first_left(count: int, passed: int) -> int:
    """Place of the first of `count` samples that is left after so many were passed.

    A last one that would be alone was joined to those before it, whatever the size of mini-batches was.
    """
    return count if passed and count - passed <= 1 else passed


def dealt_out(count: int, *, ranks: int) -> list[torch.Tensor]:
    """Places of what is left of an epoch, dealt out to so many ranks; no rank has a single one of several."""
    having = max(1, min(ranks, count // 2))
    return [torch.arange(count)[rank::having] if rank < having else torch.arange(0) for rank in range(ranks)]
