"""Two pieces of code measured in turns, so that what else the machine does meets both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.bench.spread import Spread

Work = Callable[[], object]
Measure = Callable[[], float]
"""Gives CPU time in microseconds per step."""


@dataclass(frozen=True)
class Paired:
    """CPU time in microseconds per step, round by round; both of a round one right after the other."""

    cpu_us: tuple[float, ...]
    """CPU time of what is judged, in microseconds per step."""
    reference_us: tuple[float, ...]
    """CPU time of what it is judged by, in microseconds per step."""

    @property
    def cost(self) -> Spread:
        """Microseconds per step of what is judged."""
        return Spread.of(self.cpu_us)

    @property
    def reference(self) -> Spread:
        """Microseconds per step of what it is judged by."""
        return Spread.of(self.reference_us)

    @property
    def ratio(self) -> Spread:
        """Over the rounds; within a round both numbers have met the same machine."""
        return Spread.of([a / b for a, b in zip(self.cpu_us, self.reference_us, strict=True)])

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "cpu_us": list(self.cpu_us),
            "reference_us": list(self.reference_us),
            "median_cpu_us": self.cost.median,
            "median_reference_us": self.reference.median,
            "ratio": {"low": self.ratio.low, "median": self.ratio.median, "high": self.ratio.high},
        }


def nothing() -> None:
    """What is done where nothing has to be done."""


def cpu_us(work: Work, *, steps: int, settle: Work = nothing) -> float:
    """CPU time of all threads of this process, in microseconds per step.

    settle: waits at the end for what the steps have begun in other threads; its time counts.
    """
    began = time.process_time()
    for _ in range(steps):
        work()
    settle()
    return (time.process_time() - began) / steps * 1e6


def in_turns(judged: Measure, reference: Measure, *, rounds: int) -> Paired:
    """Measure both in every round; who begins alternates. The first measurement of each does not count."""
    judged()
    reference()
    pairs = []
    for number in range(rounds):
        if number % 2:
            least = reference()
            pairs.append((judged(), least))
        else:
            pairs.append((judged(), reference()))
    return Paired(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))
