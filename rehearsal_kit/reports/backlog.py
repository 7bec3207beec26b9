"""How much is still to be trained: a pure function of a timeline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rehearsal_kit.record.records import Steps
from rehearsal_kit.record.timeline import Timeline

RECENT = 50
"""Steps whose median duration counts."""
ON_ALL = frozenset({"FromScratch", "Cumulative"})
"""Strategies that train on all tasks so far, as records name them: each task takes longer than the last."""


@dataclass(frozen=True)
class Backlog:
    """What has arrived and is not trained yet."""

    waiting: int
    """Tasks that wait to be begun; the one under way is not among them."""
    minutes: float | None
    """Minutes until all that has arrived is trained; None before it can be known."""
    grows: bool
    """Whether tasks arrive faster than they are trained."""

    @property
    def words(self) -> str:
        """Words for a status line: "2 tasks wait, about 14 min"."""
        words = "no task waits" if not self.waiting else _count(self.waiting)
        if self.minutes is not None and (self.waiting or self.minutes):
            words += f", {_duration(self.minutes)}"
        return f"{words}, more arrive than are trained" if self.grows else words


def backlog(timeline: Timeline) -> Backlog:
    """What waits, how long that will take at the pace of the last steps, and whether it becomes more."""
    timeline = timeline.lineage()
    waiting = timeline.waiting()
    run_state, pace = timeline.run_state(), _pace(timeline.latest(Steps, RECENT))
    if run_state is None:
        return Backlog(len(waiting), None, False)
    sizes, aside = timeline.tasks(), timeline.set_aside()
    samples = {number: 0 if number in aside else task.training for number, task in sizes.items()}
    upto = dict(zip(samples, accumulate(samples.values()), strict=True))
    began = upto if run_state.began_with in ON_ALL else samples
    trained = upto if run_state.strategy in ON_ALL else samples
    per_sample = run_state.size / max(1, began.get(run_state.task, 0))
    left = [run_state.left, *(per_sample * trained[number] for number in waiting)]
    steps = sum(math.ceil(samples / run_state.batch) for samples in left)
    minutes = None if pace is None else steps * pace / 60
    share = 1 - run_state.left / run_state.size if run_state.left else 0.0
    return Backlog(len(waiting), minutes, bool(waiting) and timeline.grows(share))


def _pace(steps: Sequence[Steps]) -> float | None:
    """Median seconds of one step."""
    each: list[float] = []
    for record in reversed(steps):
        each += [record.seconds / record.count] * min(record.count, RECENT)
        if len(each) >= RECENT:
            break
    return statistics.median(each[:RECENT]) if each else None


def _count(tasks: int) -> str:
    return "1 task waits" if tasks == 1 else f"{tasks} tasks wait"


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
