"""What the training loop asks of a strategy: which tasks, which samples again, which loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.learning.strategies.losses import Loss, Tensors, supervised_loss

_EACH = (
    "it must be one value for each sample, (sample,): the mean over the samples of all ranks is taken later. "
    "Losses of torch give that by reduction='none', for images averaged over all axes but the first."
)


@dataclass(frozen=True)
class Part:
    """One part of an augmented mini-batch after the forward pass; it may have no samples."""

    outputs: Tensors
    """Outputs of the network as it is now, (sample, ...)."""
    targets: Tensors
    """(sample, ...), named like the outputs they are compared with."""
    stored: Tensors
    """Outputs that an earlier network made of the same samples, (sample, ...); empty unless distilled."""
    averaged: Tensors = field(default_factory=dict)
    """Outputs that the average of the weights makes of the same samples, (sample, ...); empty unless these
    are representatives and the strategy `asks_average`."""
    plastic: Tensors = field(default_factory=dict)
    """Likewise what the quicker average makes of them, where the strategy `asks_plastic_average`."""

    def loss(self, of: Loss = supervised_loss) -> torch.Tensor:
        """Loss of each sample: (sample,). SettingsError where `of` does not give one for each.

        Of no sample it is not asked: a loss of somebody's own may know nothing of that.
        """
        count = min(map(len, (*self.outputs.values(), *self.targets.values())), default=0)
        if self.outputs and not count:
            return next(iter(self.outputs.values())).new_zeros(0, dtype=torch.float32)
        values = of(self.outputs, self.targets)
        if not isinstance(values, torch.Tensor) or values.shape != (count,):
            raise SettingsError(f"the loss of {count} samples came as {_words(values)}; {_EACH}")
        return values


@dataclass(frozen=True, kw_only=True)
class AugmentedBatch:
    """What one step of one rank is about, after the forward pass."""

    new: Part
    """The b samples of the mini-batch."""
    replayed: Part
    """The r representatives; none unless the strategy `replays`."""
    distilled: Part
    """Samples with stored outputs; none unless the strategy `distils`. They are those of the second draw or,
    where the strategy `shares_draw`, those of the representatives that have stored outputs."""
    tasks: int = 1
    """Tasks that were trained so far, the newest included; the same on all ranks."""
    present: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Which classes occur among the new samples of all ranks, for each target that is a class: bool (class,).
    Empty unless the strategy `asks_present`."""


@dataclass(frozen=True)
class Term:
    """One term of the loss: `weight` times the mean of `values` over the samples of all ranks."""

    name: str
    weight: float
    values: torch.Tensor
    """Loss of each sample on this rank: (sample,)."""

    def __post_init__(self) -> None:
        if not isinstance(self.values, torch.Tensor) or self.values.dim() != 1:
            raise SettingsError(f"the term {self.name!r} of the loss came as {_words(self.values)}; {_EACH}")


class Strategy:
    """Base of all strategies: a small frozen object without state. An own one overrides what differs."""

    restarts: ClassVar[bool] = False
    """Whether every task begins with the initial weights again."""
    replays: ClassVar[bool] = False
    """Whether mini-batches are augmented with r representatives."""
    distils: ClassVar[bool] = False
    """Whether outputs are stored, and samples compared with them."""
    asks_present: ClassVar[bool] = False
    """Whether the loss depends on which classes are among the new samples of all ranks."""
    asks_average: ClassVar[bool] = False
    """Whether representatives are also predicted by the average of the weights (`Training(average=...)`)."""
    asks_plastic_average: ClassVar[bool] = False
    """Whether they are also predicted by the quicker average (`Training(plastic_average=...)`)."""
    for_classes: ClassVar[bool] = False
    """Whether the loss is about classes, so that streams without any are refused."""
    separate: ClassVar[bool] = False
    """Whether `direction` is asked to combine the gradients of the terms."""

    @property
    def name(self) -> str:
        """Name of the strategy in tables."""
        return type(self).__name__

    @property
    def shares_draw(self) -> bool:
        """Whether the representatives are also those that are compared with their stored outputs.

        Otherwise a strategy that `distils` compares r_d samples of a second draw, independent of the first.
        """
        return False

    def tasks(self, newest: int) -> range:
        """Which tasks are trained on when task `newest` is the newest; default: that one only."""
        return range(newest, newest + 1)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The loss, as terms that are added up; always as many, under the same names."""
        raise NotImplementedError(f"{self.name} does not say what its loss is: override terms().")

    def direction(self, gradients: torch.Tensor) -> torch.Tensor:
        """What the optimizer is given: from the gradients of the terms over the samples of all ranks.

        gradients: (term, parameter), all parameters of the network in one row, weights of the terms
        included. Returns (parameter,). Called only where `separate` is true, with the same numbers on
        all ranks.
        """
        return gradients.sum(dim=0)


def _words(values: object) -> str:
    return f"a tensor {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__


def joined(first: Part, second: Part) -> Part:
    """The samples of two parts as one, without stored outputs."""
    return Part(
        {name: torch.cat([t, second.outputs[name]]) for name, t in first.outputs.items()},
        {name: torch.cat([t, second.targets[name]]) for name, t in first.targets.items()},
        {},
    )
