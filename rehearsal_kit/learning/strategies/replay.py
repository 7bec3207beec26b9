"""Rehearsal with targets: experience replay and averaged gradient episodic memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rehearsal_kit.learning.strategies.losses import Loss, supervised_loss
from rehearsal_kit.learning.strategies.strategy import Part, Strategy, Term, joined


@dataclass(frozen=True)
class ER(Strategy):
    """Experience replay: the newest task, each mini-batch augmented with representatives of all.

    Loss: the mean over the b + r samples of the augmented mini-batch (Bouvier et al. 2025; Rolnick et al.,
    "Experience replay for continual learning", NeurIPS 2019).
    """

    replays = True

    loss: Loss = supervised_loss

    def terms(self, new: Part, replayed: Part, distilled: Part) -> Sequence[Term]:
        """One mean over all b + r samples."""
        return [Term("augmented", 1.0, joined(new, replayed).loss(self.loss))]


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

    def terms(self, new: Part, replayed: Part, distilled: Part) -> Sequence[Term]:
        """The mean over the new samples, and that over the representatives as the reference."""
        return [
            Term("new", 1.0, new.loss(self.loss)),
            Term("reference", 1.0, replayed.loss(self.loss)),
        ]

    def direction(self, gradients: torch.Tensor) -> torch.Tensor:
        """The gradient of the new samples, projected where it points against the reference."""
        new, reference = gradients.unbind()
        # In double precision: what is left against the reference would else grow with the parameters.
        along = torch.dot(new.double(), reference.double())
        if along >= 0:
            return new
        length = torch.dot(reference.double(), reference.double())
        projected: torch.Tensor = new.double() - along / length * reference.double()
        return projected.to(new.dtype)
