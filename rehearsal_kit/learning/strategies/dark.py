"""Rehearsal with stored outputs: Dark Experience Replay, without and with targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.base.settings import SETTINGS
from rehearsal_kit.learning.strategies.losses import Loss, among_present, squared_distance, supervised_loss
from rehearsal_kit.learning.strategies.strategy import AugmentedBatch, Strategy, Term


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
        make_plain(self)
        SETTINGS["alpha"].require(self.alpha)

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The new samples, and the distillation."""
        return [Term("new", 1.0, batch.new.loss(self.loss)), _distillation(batch, self.alpha)]


@dataclass(frozen=True)
class DERpp(Strategy):
    """DER++: Dark Experience Replay, and representatives with their targets.

    Loss: mean over the new samples + alpha x mean squared distance to the stored outputs of the distilled
    samples + beta x mean over the representatives (Buzzega et al., NeurIPS 2020, equation 6).

    draws: 2, as in the paper, compares r_d samples of a second, independent draw with their outputs, so that
    b + r + r_d rows are computed; 1 compares the r representatives themselves, so that every row that is
    computed serves both terms: b + r rows. Stores inputs, targets and outputs.
    """

    replays = True
    distils = True

    alpha: float = 0.5
    beta: float = 1.0
    loss: Loss = supervised_loss
    draws: int = 1

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("alpha", "beta", "draws"):
            SETTINGS[name].require(getattr(self, name))

    @property
    def shares_draw(self) -> bool:
        """Whether one draw serves both terms."""
        return self.draws == 1

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The new samples, the distillation, and the representatives."""
        return [
            Term("new", 1.0, batch.new.loss(self.loss)),
            _distillation(batch, self.alpha),
            Term("replay", self.beta, batch.replayed.loss(self.loss)),
        ]


@dataclass(frozen=True)
class DERppACE(DERpp):
    """DER++ whose new samples compete only with the classes among the new samples of all ranks, as in ER-ACE.

    Loss: that of `DERpp`, with the first term of `ERACE` for the new samples (Buzzega et al., NeurIPS 2020,
    equation 6; Caccia et al., ICLR 2022, equation 3). For classes.
    """

    asks_present = True
    for_classes = True

    def terms(self, batch: AugmentedBatch) -> Sequence[Term]:
        """The new samples among their classes, the distillation, and the representatives among all."""
        competing = among_present(batch.new.outputs, batch.present)
        return super().terms(replace(batch, new=replace(batch.new, outputs=competing)))


def _distillation(batch: AugmentedBatch, alpha: float) -> Term:
    distilled = batch.distilled
    return Term("distillation", alpha, squared_distance(distilled.outputs, distilled.stored))
