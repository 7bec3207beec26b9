"""How much is still to be trained: a pure function of a timeline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from rehearsal_kit.telemetry import Applied, Record, StateChanged, Steps, TaskArrived, TaskBegan, TaskEnded
from rehearsal_kit.timeline import Timeline

RECENT = 50
"""Steps whose median duration counts."""
WINDOW = 5
"""Tasks over which arrivals are compared with what was trained."""
ON_ALL = frozenset({"FromScratch", "Cumulative"})
"""Strategies that train on all tasks so far, as records name them: each task takes longer than the last."""


@dataclass(frozen=True)
class Backlog:
    """What has arrived and is not trained yet."""

    waiting: int
    """Tasks that wait to be begun; the one under way is not among them."""
    minutes: float | None
    """Until all that has arrived is trained; None before it can be known."""
    grows: bool
    """Whether tasks arrive faster than they are trained."""

    @property
    def words(self) -> str:
        """For a status line: "2 tasks wait, about 14 min"."""
        words = "no task waits" if not self.waiting else _count(self.waiting)
        if self.minutes is not None and (self.waiting or self.minutes):
            words += f", {_duration(self.minutes)}"
        return f"{words}, more arrive than are trained" if self.grows else words


@dataclass(frozen=True)
class _Course:
    """Where a run is, in samples of one rank: they stay what they are when the batch is changed."""

    batch: float
    strategy: str
    """In force now."""
    task: int
    """The last that was begun."""
    size: float
    """Of that one, over all its epochs."""
    left: float
    """Of that size."""
    began_with: str
    """The strategy in force when it was begun."""


def backlog(timeline: Timeline) -> Backlog:
    """What waits, how long that will take at the pace of the last steps, and whether it becomes more."""
    timeline = timeline.lineage()
    waiting = timeline.waiting()
    course, pace = _course(timeline), _pace(timeline.records(Steps))
    if course is None:
        return Backlog(len(waiting), None, False)
    sizes = {number: task.training for number, task in timeline.tasks().items()}
    for number in timeline.set_aside():
        sizes[number] = 0
    per_sample = course.size / max(1, _samples(course.task, sizes, strategy=course.began_with))
    left = [course.left]
    left += [per_sample * _samples(number, sizes, strategy=course.strategy) for number in waiting]
    steps = sum(math.ceil(samples / course.batch) for samples in left)
    minutes = None if pace is None else steps * pace / 60
    share = 1 - course.left / course.size if course.left else 0.0
    return Backlog(len(waiting), minutes, bool(waiting) and _grows(timeline, share=share))


def _course(timeline: Timeline) -> _Course | None:
    began = timeline.last(TaskBegan)
    if began is None:
        return None
    records = timeline.records()
    place = next(i for i in reversed(range(len(records))) if records[i] is began)
    batch, began_with = _settings(records, place)
    strategy, size = began_with, began.steps * batch
    left = size
    for record in records[place + 1 :]:
        match record:
            case Applied(settings=settings):
                batch = float(settings.get("batch", batch))
                strategy = str(settings.get("strategy", strategy))
            case Steps():
                left = max(0.0, left - len(record.losses) * batch)
            case StateChanged(state="paused", reason=reason) if reason:
                left = size  # the ranks went back to where the task began
            case TaskEnded():
                left = 0.0
    return _Course(batch, strategy, began.task, size, left, began_with)


def _settings(records: Sequence[Record], place: int) -> tuple[float, str]:
    """Batch and strategy in force at this place: what was told last before it, or else first after it."""
    for record in chain(reversed(records[:place]), records[place:]):
        if isinstance(record, Applied) and "batch" in record.settings:
            return float(record.settings["batch"]), str(record.settings.get("strategy", ""))
    return 1.0, ""


def _samples(task: int, sizes: Mapping[int, int], *, strategy: str) -> int:
    """That a task is trained on, over all ranks, once."""
    if strategy in ON_ALL:
        return sum(size for number, size in sizes.items() if number <= task)
    return sizes.get(task, 0)


def _pace(steps: Sequence[Steps]) -> float | None:
    """Median seconds of one step."""
    each: list[float] = []
    for record in reversed(steps):
        each += [record.seconds / len(record.losses)] * len(record.losses)
        if len(each) >= RECENT:
            break
    return statistics.median(each[:RECENT]) if each else None


def _grows(timeline: Timeline, *, share: float) -> bool:
    """Whether more arrived than was trained since some tasks ago; share: trained of the one under way.

    Arrivals carry no time, but records stand in order. What was there before the first task ended does not
    count, and one more is no trend.
    """
    arrived = ended = 0
    since: tuple[int, float] | None = None
    for record in reversed(timeline.records()):
        if isinstance(record, TaskEnded):
            since = (arrived, ended + share)
            ended += 1
            if ended == WINDOW:
                break
        arrived += isinstance(record, TaskArrived)
    return since is not None and since[0] > since[1] + 1


def _count(tasks: int) -> str:
    return "1 task waits" if tasks == 1 else f"{tasks} tasks wait"


def _duration(minutes: float) -> str:
    if minutes < 1:
        return "under a minute"
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
