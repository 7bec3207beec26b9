"""What one rank computes to plan a draw, at numbers of ranks that no test machine has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.base.randomness import Rekeyed, generator
from rehearsal_kit.bench.store.side_by_side import Paired, Work, cpu_us, in_turns
from rehearsal_kit.bench.table import Table
from rehearsal_kit.buffer.draw_plan import plan_draw

RANKS = (8, 32, 128, 512, 1024)
REPRESENTATIVES = (7, 24)
STORED = 10_000
"""Samples on each rank."""


@dataclass(frozen=True)
class PlanCost:
    """CPU time per step of the plan, beside numpy's for as many plain random integers."""

    ranks: int
    representatives: int
    paired: Paired

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        return (
            f"{self.ranks}",
            f"{self.representatives}",
            f"{self.paired.cost.median:.0f}",
            f"{self.paired.reference.median:.1f}",
            self.paired.ratio.text(1),
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {"ranks": self.ranks, "representatives": self.representatives, **self.paired.data()}


def measure_plans(rounds: int, steps: int) -> list[PlanCost]:
    """All numbers of ranks and of representatives; in this process."""
    return [_measure(ranks, r, rounds=rounds, steps=steps) for r in REPRESENTATIVES for ranks in RANKS]


def plan_table(costs: Sequence[PlanCost]) -> Table:
    """All of them, with what they mean."""
    return Table(
        f"The plan of a draw: CPU us per step on one rank, {STORED:,} samples on each; a new key each step",
        ("ranks", "r", "plan us", "integers us", "plan / integers"),
        tuple(cost.line() for cost in costs),
        (
            "plan: key the generator, plan for all ranks, what this rank sends, what it receives.",
            "integers: numpy draws ranks x r plain integers below the same bound. Ratio: median (quartiles).",
        ),
    )


def _measure(ranks: int, representatives: int, *, rounds: int, steps: int) -> PlanCost:
    plan = _planning(ranks, representatives)
    numbers = _plain_integers(ranks * representatives, below=ranks * STORED)
    paired = in_turns(lambda: cpu_us(plan, steps=steps), lambda: cpu_us(numbers, steps=steps), rounds=rounds)
    return PlanCost(ranks, representatives, paired)


def _planning(ranks: int, representatives: int) -> Work:
    stored, keyed, rank = [STORED] * ranks, Rekeyed(0, "draw"), ranks // 2
    steps = iter(range(2**40))

    def plan() -> None:
        drawn = plan_draw(stored, [representatives], keyed.at(0, next(steps)))
        drawn.sent_by(rank)
        drawn.received_by(rank)

    return plan


def _plain_integers(count: int, *, below: int) -> Work:
    random = generator(0, "integers")
    return lambda: random.integers(below, size=count)
