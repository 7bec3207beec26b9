"""What each strategy's step costs beside Incremental's, and beside what its rows alone would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rehearsal_kit.bench.ranks.strategy_ranks import Turns
from rehearsal_kit.bench.spread import Spread
from rehearsal_kit.bench.table import Table
from rehearsal_kit.compare.arms import Arm
from rehearsal_kit.compare.streams import stream_named

MARGIN = 1.05
"""Beyond its rows, that a strategy may cost."""
COLUMNS = ("stream", "strategy", "step ms", "x Incremental", "rows", "limit", "verdict")


@dataclass(frozen=True)
class StrategyCost:
    """Step times of a strategy on all ranks together, round by round: the slowest rank of a step counts."""

    turns: Turns
    arm: Arm
    seconds: tuple[float, ...]
    beside: tuple[float, ...]
    """Seconds of Incremental's step in the same round."""

    @property
    def ratio(self) -> Spread:
        """Ratio to Incremental's step in the same round."""
        return Spread.of([one / other for one, other in zip(self.seconds, self.beside, strict=True)])

    @property
    def rows(self) -> float:
        """Samples computed, relative to Incremental."""
        stream = stream_named(self.turns.stream)
        strategy, rehearsal = self.arm.made(stream), self.arm.rehearsal(stream)
        drawn = rehearsal.representatives * strategy.replays
        drawn += rehearsal.distillation * (strategy.distils and not strategy.shares_draw)
        return 1 + drawn / self.arm.training(stream).batch

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        limit = MARGIN * self.rows
        return (
            self.turns.stream,
            self.arm.name,
            f"{Spread.of(self.seconds).median * 1e3:.1f}",
            self.ratio.text(2),
            f"{self.rows:.2f}",
            f"{limit:.2f}",
            "-" if self.arm.name == "Incremental" else "within" if self.ratio.median <= limit else "above",
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "stream": self.turns.stream,
            "strategy": self.arm.name,
            "seconds": list(self.seconds),
            "incremental_seconds": list(self.beside),
            "median_ratio": self.ratio.median,
            "rows": self.rows,
            "limit": MARGIN * self.rows,
        }


def strategy_costs(turns: Turns, ranks: Sequence[Mapping[str, list[float]]]) -> list[StrategyCost]:
    """Cost of each strategy, from what the ranks measured."""
    slowest = {name: np.max([rank[name] for rank in ranks], axis=0).tolist() for name in ranks[0]}
    base = tuple(slowest["Incremental"])
    return [StrategyCost(turns, arm, tuple(slowest[arm.name]), base) for arm in turns.measured()]


def strategy_table(costs: Sequence[StrategyCost], *, ranks: int) -> Table:
    """All of them, with what they mean."""
    turns = costs[0].turns
    notes = (
        f"{turns.rounds} steps of each strategy in turns, every one with a network and a full buffer of "
        f"{turns.capacity:,} samples of its own; the slowest rank of a step counts. x Incremental: median "
        "(quartiles) over rounds. A step includes all waiting for the background job that it began. rows: "
        f"samples computed beside Incremental, (b + r + r_d)/b; limit: rows x {MARGIN}.",
    )
    title = f"Training step by strategy; ranks: {ranks}, on {turns.device}"
    return Table(title, COLUMNS, tuple(cost.line() for cost in costs), notes)
