"""What to train on, and with which loss. A strategy is a small frozen object without state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

Tensors = Mapping[str, torch.Tensor]


class Strategy(Protocol):
    """What the training loop asks of a strategy; any small class that answers it will do."""

    @property
    def rehearses(self) -> bool:
        """Whether mini-batches are augmented with representatives."""

    @property
    def restarts(self) -> bool:
        """Whether every task begins with the initial weights again."""

    def tasks(self, newest: int) -> range:
        """Which tasks are trained on when task `newest` is the newest."""

    def loss(self, outputs: Tensors, targets: Tensors) -> torch.Tensor:
        """Loss of each sample, (sample,)."""


def mean_absolute_error(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Sum over the fields of the mean absolute difference, per sample: (sample,).

    The loss of PtychoNN (Cherukara et al. 2020) and of its continual learning (Bouvier et al. 2025): mean
    absolute error of amplitude and of phase with equal weight.
    """
    per_field = [
        (outputs[name] - target).abs().flatten(1).mean(dim=1)
        for name, target in targets.items()
        if name in outputs
    ]
    return torch.stack(per_field).sum(dim=0)


@dataclass(frozen=True)
class Incremental:
    """Naive fine-tuning on each task as it comes: the lower reference."""

    rehearses = False
    restarts = False

    def tasks(self, newest: int) -> range:
        """The newest one only."""
        return range(newest, newest + 1)

    def loss(self, outputs: Tensors, targets: Tensors) -> torch.Tensor:
        """Mean absolute error."""
        return mean_absolute_error(outputs, targets)


@dataclass(frozen=True)
class FromScratch:
    """A fresh network on all tasks so far, at every task: the upper reference."""

    rehearses = False
    restarts = True

    def tasks(self, newest: int) -> range:
        """All so far."""
        return range(newest + 1)

    def loss(self, outputs: Tensors, targets: Tensors) -> torch.Tensor:
        """Mean absolute error."""
        return mean_absolute_error(outputs, targets)


@dataclass(frozen=True)
class ER:
    """Experience replay: the newest task, each mini-batch augmented with representatives of all.

    Loss: the mean over the b + r samples of the augmented mini-batch (Bouvier et al. 2025, section on
    rehearsal; Rolnick et al., "Experience replay for continual learning", NeurIPS 2019).
    """

    rehearses = True
    restarts = False

    def tasks(self, newest: int) -> range:
        """The newest one only; the others come back as representatives."""
        return range(newest, newest + 1)

    def loss(self, outputs: Tensors, targets: Tensors) -> torch.Tensor:
        """Mean absolute error."""
        return mean_absolute_error(outputs, targets)
