"""What rehearsal adds to a whole training step, from pairs of steps on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rehearsal_kit.bench.ranks.step_ranks import RankSteps, Trial
from rehearsal_kit.bench.spread import Interval, Spread
from rehearsal_kit.bench.table import Table

LIMIT = 0.02
"""Share of a step that rehearsal may cost."""
COLUMNS = (
    "network",
    "b+r (c)",
    "with ms",
    "without ms",
    "with/without - 1 (95 %)",
    "waited",
    "hidden ms",
    "verdict",
)


@dataclass(frozen=True)
class StepCost:
    """What rehearsal adds on all ranks together, pair by pair: the slowest rank of a step counts."""

    trial: Trial
    ranks: tuple[RankSteps, ...]

    @property
    def with_s(self) -> list[float]:
        """Seconds of each step with rehearsal."""
        return _slowest([rank.with_s for rank in self.ranks])

    @property
    def without_s(self) -> list[float]:
        """Seconds of each step without."""
        return _slowest([rank.without_s for rank in self.ranks])

    @property
    def difference(self) -> Interval:
        """Relative difference of the steps, with / without - 1, mean over the pairs."""
        pairs = zip(self.with_s, self.without_s, strict=True)
        return Interval.of([a / b - 1 for a, b in pairs])

    @property
    def waited(self) -> float:
        """Share of the steps with rehearsal that a rank waits for its background job; mean over ranks."""
        return sum(sum(rank.waited_s) for rank in self.ranks) / sum(sum(rank.with_s) for rank in self.ranks)

    @property
    def worked_s(self) -> float:
        """Seconds that a background job takes; mean over ranks and steps."""
        return sum(rank.worked_s for rank in self.ranks) / (len(self.ranks) * self.trial.pairs)

    @property
    def hidden_s(self) -> float:
        """Seconds of a background job that training did not wait for; mean over ranks and steps."""
        waited = sum(sum(rank.waited_s) for rank in self.ranks)
        return self.worked_s - waited / (len(self.ranks) * self.trial.pairs)

    @property
    def verdict(self) -> str:
        """Whether the whole interval lies on one side of the limit."""
        if self.difference.high < LIMIT:
            return f"within {LIMIT:.0%}"
        return f"above {LIMIT:.0%}" if self.difference.low > LIMIT else "not resolved"

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        found, trial = self.difference, self.trial
        return (
            self.ranks[0].subject,
            f"{trial.batch}+{trial.representatives} ({trial.candidates})",
            f"{Spread.of(self.with_s).median * 1e3:.1f}",
            f"{Spread.of(self.without_s).median * 1e3:.1f}",
            f"{found.mean:+.2%} ({found.low:+.2%} to {found.high:+.2%})",
            f"{self.waited:.2%}",
            f"{self.hidden_s * 1e3:.2f}",
            self.verdict,
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        found = self.difference
        return {
            "network": self.ranks[0].subject,
            "row_bytes": self.ranks[0].row_bytes,
            "devices": list(self.trial.devices),
            "deterministic": self.trial.deterministic,
            "batch": self.trial.batch,
            "representatives": self.trial.representatives,
            "candidates": self.trial.candidates,
            "capacity_per_rank": self.trial.capacity,
            "pairs": self.trial.pairs,
            "median_with_s": Spread.of(self.with_s).median,
            "median_without_s": Spread.of(self.without_s).median,
            "difference": {"low": found.low, "mean": found.mean, "high": found.high},
            "waited_share": self.waited,
            "worked_s": self.worked_s,
            "hidden_s": self.hidden_s,
            "verdict": self.verdict,
            "by_rank": [
                {"with_s": rank.with_s, "waited_s": rank.waited_s, "without_s": rank.without_s}
                for rank in self.ranks
            ],
        }


def step_table(costs: Sequence[StepCost], *, cpus: int) -> Table:
    """All of them, at least one, with what they mean."""
    trial = costs[0].trial
    ranks = len(trial.devices)
    notes = [
        "Both kinds of step train b+r samples on each rank: with rehearsal b new ones and r representatives,",
        f"without it b+r new ones. {trial.pairs} pairs in turns; the slowest rank of a step counts; "
        f"{trial.capacity:,} samples stored per rank.",
        "with: includes all waiting for the background job. hidden: what that job takes beyond this waiting.",
        "Interval: Student's t over the pairs. Trained was the smallest network and image with steps of "
        f"{trial.least_s * 1e3:.0f} ms or more in a first trial, if there was one.",
    ]
    if trial.devices[0] == "cpu" and 2 * ranks > cpus:
        notes.append(
            f"{ranks} ranks have {2 * ranks} threads on {cpus} CPUs: what the background thread computes is "
            "taken from the training thread, so that hidden work is not free here."
        )
    elif trial.devices[0] != "cpu":
        same = "the same bits each time" if trial.deterministic else "whatever is fastest (--fastest)"
        notes.append(f"Computed by {same}; what that costs is the ratio of two such measurements.")
    return Table(
        f"Training step with and without rehearsal; ranks: {ranks}, on {trial.devices[0].split(':')[0]}",
        COLUMNS,
        tuple(cost.line() for cost in costs),
        tuple(notes),
    )


def _slowest(ranks: Sequence[list[float]]) -> list[float]:
    slowest: list[float] = np.max(ranks, axis=0).tolist()
    return slowest
