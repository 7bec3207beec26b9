"""What one rank trains on in one step: new samples, and what of the draw the strategy has a use for."""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.stored_outputs import VERSION, without_outputs
from rehearsal_kit.learning.strategies.strategy import Strategy


@dataclass(frozen=True)
class MiniBatch:
    """What one rank trains on in one step; each part is named tensors (sample, ...), or empty."""

    new: Samples
    replayed: Samples
    """Samples of the first draw; with their stored outputs where these are compared, too."""
    distilled: Samples
    """Samples of the second draw with their stored outputs."""
    tasks: int = 1
    """Tasks that were trained so far, the newest included."""
    asks_losses: bool = False
    """Whether the loss of each representative is to be known after the step: for loss-aware removal."""

    @staticmethod
    def augmented(new: Samples, replayed: Samples, distilled: Samples, *, strategy: Strategy) -> MiniBatch:
        """New samples and, of the first and of the second draw, as much as the strategy has a use for.

        What was drawn before a run was switched to another strategy may be more than that.
        """
        once = strategy.shares_draw
        return MiniBatch(
            new,
            (replayed if once else without_outputs(replayed)) if strategy.replays else {},
            distilled if strategy.distils and not once else {},
        )

    @property
    def parts(self) -> tuple[Samples, Samples, Samples]:
        """All that goes through the network."""
        return (self.new, self.replayed, self.distilled)

    @property
    def shares_draw(self) -> bool:
        """Whether the representatives bring the stored outputs that they are compared with."""
        return VERSION in self.replayed

    @property
    def compared(self) -> Samples:
        """The samples that may have stored outputs."""
        return self.replayed if self.shares_draw else self.distilled
