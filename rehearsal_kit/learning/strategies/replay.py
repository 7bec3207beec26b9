"""Rehearsal with targets: experience replay, with averages, its asymmetric loss, and A-GEM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.base.settings import SETTINGS
from rehearsal_kit.learning.strategies.losses import (
    Loss,
    Tensors,
    among_present,
    likelier,
    squared_distance,
    supervised_loss,
)
from rehearsal_kit.learning.strategies.strategy import AugmentedBatch, Part, Strategy, Term, joined


@dataclass(frozen=True)
class ER(Strategy):
    """Experience replay: the newest task, each mini-batch augmented with representatives of all.

    balance: what the representatives weigh beside the new samples. "samples": as many as they are, one mean
    over the b + r samples of the augmented mini-batch (Bouvier et al. 2025; Rolnick et al., "Experience
    replay for continual learning", NeurIPS 2019), so that few representatives hold little. Otherwise
    (2 x mean over b + 2 w x mean over r) / (1 + w): "equal": w = 1, the sum of both means (Chaudhry et al.,
    "On tiny episodic memories in continual learning", arXiv 1902.10486); "tasks": w = T - 1 after T tasks,
    each task weighs the same; or w itself, a number. Where nothing was drawn, new samples keep their weight.
    Stores inputs and targets; computes b + r rows.
    """

    replays = True

    loss: Loss = supervised_loss
    balance: str | float = "equal"

    def __post_init__(self) -> None:
        make_plain(self)
        SETTINGS["balance"].require(self.balance)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """One mean over all b + r samples, or those of both parts with their weights."""
        if self.balance == "samples":
            return [Term("augmented", 1.0, joined(batch.new, batch.replayed).loss(self.loss))]
        weight = self._weight(batch.tasks)
        return [
            Term("new", 2 / (1 + weight), batch.new.loss(self.loss)),
            Term("replay", 2 * weight / (1 + weight), batch.replayed.loss(self.loss)),
        ]

    def _weight(self, tasks: int) -> float:
        # Within the first task there is nothing older to be balanced against.
        words = {"equal": 1.0, "tasks": float(max(1, tasks - 1))}
        return words[self.balance] if isinstance(self.balance, str) else self.balance


@dataclass(frozen=True)
class MeanER(ER):
    """Experience replay whose network is held to the average of its own weights on the representatives.

    Loss: that of `ER` + consistency x mean squared distance between the outputs of the network and those of
    its average, over the representatives (Arani et al., "Learning fast, learning slow", ICLR 2022, equation 5
    with one average). Needs `Training(average=...)`. Stores inputs and targets, no outputs; computes b + r
    rows, and predicts r.
    """

    asks_average = True

    consistency: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        SETTINGS["consistency"].require(self.consistency)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """Those of experience replay, and the distance to the average."""
        distance = squared_distance(batch.replayed.outputs, self._held_to(batch.replayed))
        return [*super().terms(batch), Term("consistency", self.consistency, distance)]

    def _held_to(self, replayed: Part) -> Tensors:
        """What the outputs for the representatives are compared with: named tensors (sample, ...)."""
        return replayed.averaged


@dataclass(frozen=True)
class CLSER(MeanER):
    """Experience replay held to the better of two averages of its weights: CLS-ER, for classes.

    Loss: that of `ER` + consistency x mean squared distance between the logits of the network and, for each
    representative, those of whichever average gives its class the larger probability: the slow one
    (`Training(average=...)`, the paper's stable model, which predicts) or the quick one
    (`Training(plastic_average=...)`, its plastic model). Arani et al., "Learning fast, learning slow: a
    general continual learning method based on complementary learning system", ICLR 2022.

    There an average follows, with decay a, only after some steps, chosen at random with frequency f. Here it
    follows every step, with the decay 1 - f (1 - a), which is the same on average: 0.9993 and 0.9991 for
    a = 0.999 with f = 0.7 and f = 0.9, with which the authors' code begins. Here running means and variances
    of batch norm are averaged, too, and the averages predict in evaluation mode. Outputs that are no classes
    are held to the slow average. Stores inputs and targets; computes b + r rows, and predicts r twice.
    """

    asks_plastic_average = True
    for_classes = True

    def _held_to(self, replayed: Part) -> Tensors:
        """The outputs of the average that knows the class better, sample by sample."""
        return likelier(replayed.averaged, replayed.plastic, targets=replayed.targets)


@dataclass(frozen=True)
class ERACE(Strategy):
    """Experience replay with an asymmetric cross-entropy: ER-ACE, for classes.

    New samples compete only with the classes that occur among the new samples of all ranks, representatives
    with all: mean over b + mean over r (Caccia et al., "New insights on reducing abrupt representation change
    in online continual learning", ICLR 2022, equation 3). So a class that comes does not push away what the
    network knows of the others. Stores inputs and targets; computes b + r rows.
    """

    replays = True
    asks_present = True
    for_classes = True

    loss: Loss = supervised_loss

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The new samples among their classes, and the representatives among all."""
        competing = among_present(batch.new.outputs, batch.present)
        return [
            Term("new", 1.0, replace(batch.new, outputs=competing).loss(self.loss)),
            Term("replay", 1.0, batch.replayed.loss(self.loss)),
        ]


@dataclass(frozen=True)
class AGEM(Strategy):
    """Averaged gradient episodic memory: representatives only forbid directions, they are not trained on.

    Where the gradient g of the new samples points against the gradient g_ref of the representatives, both
    averaged over all ranks, its part along g_ref is taken away: g - (g . g_ref) / (g_ref . g_ref) g_ref
    (Chaudhry et al., "Efficient lifelong learning with A-GEM", ICLR 2019, equation 11).
    """

    replays = True
    separate = True

    loss: Loss = supervised_loss

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The mean over the new samples, and that over the representatives as the reference."""
        return [
            Term("new", 1.0, batch.new.loss(self.loss)),
            Term("reference", 1.0, batch.replayed.loss(self.loss)),
        ]

    def direction(self, gradients: torch.Tensor) -> torch.Tensor:
        """The gradient of the new samples, projected where it points against the reference."""
        new, reference = gradients.unbind()
        # In double precision: what is left against the reference would else grow with the parameters.
        along = torch.dot(new.double(), reference.double())
        length = torch.dot(reference.double(), reference.double())
        projected = (new.double() - along / length * reference.double()).to(new.dtype)
        return torch.where(along >= 0, new, projected)  # a host that asked would wait for the device
