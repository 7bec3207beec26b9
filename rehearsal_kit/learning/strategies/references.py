"""What rehearsal is measured against: without it, and with everything again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rehearsal_kit.learning.strategies.losses import Loss, supervised_loss
from rehearsal_kit.learning.strategies.strategy import AugmentedBatch, Strategy, Term


@dataclass(frozen=True)
class Incremental(Strategy):
    """Naive fine-tuning on each task as it comes: the lower reference."""

    loss: Loss = supervised_loss

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The mean over the new samples."""
        return [Term("new", 1.0, batch.new.loss(self.loss))]


@dataclass(frozen=True)
class FromScratch(Strategy):
    """A fresh network on all tasks so far, at every task: the upper reference."""

    restarts = True

    loss: Loss = supervised_loss

    def tasks(self, newest: int) -> range:
        """All so far."""
        return range(newest + 1)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The mean over the new samples."""
        return [Term("new", 1.0, batch.new.loss(self.loss))]


@dataclass(frozen=True)
class Cumulative(Strategy):
    """The trained network trained on, at every task, with all tasks so far: beamline practice until now.

    Babu et al., "Deep learning at the edge enables real-time streaming ptychographic imaging", Nature
    Communications 14, 7059 (2023).
    """

    loss: Loss = supervised_loss

    def tasks(self, newest: int) -> range:
        """All so far."""
        return range(newest + 1)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The mean over the new samples."""
        return [Term("new", 1.0, batch.new.loss(self.loss))]
