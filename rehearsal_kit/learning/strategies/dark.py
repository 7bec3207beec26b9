"""Rehearsal with stored outputs: Dark Experience Replay, without and with targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rehearsal_kit.base.settings import require_number
from rehearsal_kit.learning.strategies.losses import Loss, squared_distance, supervised_loss
from rehearsal_kit.learning.strategies.strategy import Part, Strategy, Term


@dataclass(frozen=True)
class DER(Strategy):
    """Dark Experience Replay: the newest task, held to what the network once made of stored samples.

    Loss: mean over the new samples + alpha x mean squared distance between outputs and stored outputs of
    the distilled ones (Buzzega et al., NeurIPS 2020, equation 5).
    """

    distils = True

    alpha: float = 0.5
    loss: Loss = supervised_loss

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, low=0, high=1e6)

    def terms(self, new: Part, replayed: Part, distilled: Part) -> Sequence[Term]:
        """The new samples, and the distillation."""
        return [
            Term("new", 1.0, new.loss(self.loss)),
            Term("distillation", self.alpha, squared_distance(distilled.outputs, distilled.stored)),
        ]


@dataclass(frozen=True)
class DERpp(Strategy):
    """DER++: Dark Experience Replay, and other representatives with their targets.

    Loss: mean over the new samples + alpha x mean squared distance to the stored outputs of the distilled
    samples + beta x mean over the representatives, two independent draws (Buzzega et al., NeurIPS 2020,
    equation 6).
    """

    replays = True
    distils = True

    alpha: float = 0.5
    beta: float = 1.0
    loss: Loss = supervised_loss

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, low=0, high=1e6)
        require_number("beta", self.beta, low=0, high=1e6)

    def terms(self, new: Part, replayed: Part, distilled: Part) -> Sequence[Term]:
        """The new samples, the distillation, and the representatives."""
        return [
            Term("new", 1.0, new.loss(self.loss)),
            Term("distillation", self.alpha, squared_distance(distilled.outputs, distilled.stored)),
            Term("replay", self.beta, replayed.loss(self.loss)),
        ]
