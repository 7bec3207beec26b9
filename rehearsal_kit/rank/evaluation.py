"""Which tasks are evaluated when, so that all is known in the end and the effort stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rehearsal_kit.base.errors import TaskError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.data.experience import HELD_OUT
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.metrics import Scores
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.rank.stability import Stability
from rehearsal_kit.record.records import UNTRAINED, Evaluated, Unevaluated

GLANCED = 32
"""Watched samples of a task, over all ranks, that are looked at between two steps."""


class Evaluation:
    """Evaluates and tells; all ranks call the same methods at the same step.

    A task whose file cannot be read any more, on any rank, is left open by all of them, and so is one without
    a sample: that is told once, and no reason to end a run.

    After a task: that one and at most `earlier` of those before it, the longest not evaluated first and
    the first task always. At the end: all. Per task that is a constant, not the number of tasks.
    """

    def __init__(
        self,
        learner: Learner,
        stream: TaskStream,
        *,
        groups: ProcessGroups,
        reporter: Reporter,
        training: Training,
    ) -> None:
        self._learner = learner
        self._stream = stream
        self._groups = groups
        self._reporter = reporter
        self._earlier = training.evaluated
        self.stability = Stability(self._glance, reporter, every=training.stability_every)
        """What becomes of earlier tasks in the first steps of one."""
        self.newest = UNTRAINED
        """The last task that was trained."""
        self.sound = True
        """Whether the newest task's predictions were finite after it was trained."""
        self._seen: dict[int, int] = {}
        """The task after which each task was last evaluated."""
        self._errors: dict[int, tuple[int, float]] = {}
        """The task after which each task had its watched error, and that error."""
        self._left_open: dict[tuple[int, str], str] = {}
        """Which tasks and splits could not be evaluated when that was tried last, and why."""

    def before(self, task: int, *, step: int) -> None:
        """A task about to be trained, by the network as it is and by the untrained one: forward transfer."""
        with self._learner.state.untrained():
            self._tell(task, "test", after=UNTRAINED, step=step)
        if self.newest != UNTRAINED:
            self._tell(task, "test", after=self.newest, step=step)
        self.stability.arrived(task)

    def after(self, task: int, *, step: int) -> list[int]:
        """The task that was just trained, and some of those before it; returns which."""
        self.newest = task
        chosen = [*self._chosen(task), task]
        for each in chosen:
            self.sound = self._tell_both(each, step)
        return chosen

    def last(self, *, step: int) -> list[int]:
        """All tasks that have not been evaluated since the last one was trained; returns which."""
        left = [task for task in sorted(self._seen) if self._seen[task] < self.newest]
        for task in left:
            self._tell_both(task, step)
        return left

    def now(self, upto: int, *, step: int) -> None:
        """All tasks up to this one, between two tasks or in the middle of one."""
        for task in range(upto + 1):
            for split in HELD_OUT:
                self._tell(task, split, after=upto, step=step)

    @property
    def error(self) -> float | None:
        """Mean watched error of the tasks evaluated after the newest one; None before there is one."""
        errors = [error for after, error in self._errors.values() if after == self.newest]
        return sum(errors) / len(errors) if errors else None

    @property
    def trained(self) -> frozenset[int]:
        """The tasks that were trained, and evaluated since."""
        return frozenset(self._seen)

    def to_plain(self) -> dict[str, Any]:
        """What decides which tasks are evaluated next, for a checkpoint."""
        return {
            "newest": self.newest,
            "seen": [[task, after] for task, after in self._seen.items()],
            "errors": [[task, *pair] for task, pair in self._errors.items()],
            "stability": self.stability.to_plain(),
        }

    def restore(self, plain: Mapping[str, Any]) -> None:
        """Go on where `to_plain` was called."""
        self.newest, self.sound = plain["newest"], True
        self._seen = dict(plain["seen"])
        self.stability.restore(plain.get("stability"))
        self._errors = {task: (after, error) for task, after, error in plain["errors"]}

    def _chosen(self, newest: int) -> list[int]:
        earlier = [task for task in range(newest) if self._stream[task] is not None]
        if len(earlier) <= self._earlier:
            return earlier
        waiting = sorted(earlier[1:], key=lambda task: (self._seen[task], task))
        return sorted([*earlier[: min(1, self._earlier)], *waiting[: max(0, self._earlier - 1)]])

    def _glance(self, newest: int) -> float | None:
        """Mean error of the tasks before this one, as far as they would be evaluated, on a few samples."""
        errors = []
        for task in self._chosen(newest):
            scores, reason = self._scores(_Reading(self._stream.held_out(task, "watched", most=GLANCED)))
            if not reason and scores.errors:
                errors.append(sum(scores.errors.values()))
        return sum(errors) / len(errors) if errors and all(map(math.isfinite, errors)) else None

    def _tell_both(self, task: int, step: int) -> bool:
        self._seen[task] = self.newest
        sound = [self._tell(task, split, after=self.newest, step=step) for split in HELD_OUT]
        return all(sound)

    def _tell(self, task: int, split: str, *, after: int, step: int) -> bool:
        if self._stream[task] is None:
            return True
        reading = _Reading(self._stream.held_out(task, split))
        scores, reason = self._scores(reading)
        if not reason and not scores.errors:
            reason = f"none of its {split} samples has any counts"
        if reason:
            self._leave_open(task, split, after=after, step=step, reason=reason)
            return True
        self._left_open.pop((task, split), None)
        if not all(map(math.isfinite, scores.errors.values())):
            return False  # a network that predicts no numbers has no error; what became of it the loss tells
        if split == "watched" and after != UNTRAINED:
            self._errors[task] = (after, sum(scores.errors.values()))
        self._reporter.tell(
            Evaluated(
                step=step,
                after=after,
                task=task,
                split=split,
                errors=scores.errors,
                metrics={name: value for name, value in scores.metrics.items() if math.isfinite(value)},
            )
        )
        return True

    def _scores(self, reading: _Reading) -> tuple[Scores, str]:
        """Errors and metrics over all ranks, or why there are none; the same on every rank."""
        try:
            scores = self._learner.metrics(reading)
        except TaskError as error:  # the network cannot predict them; that is no reason to end a run
            return Scores({}, {}), str(error)
        return scores, self._groups.first_trouble(reading.trouble)

    def _leave_open(self, task: int, split: str, *, after: int, step: int, reason: str) -> None:
        if split == "watched" and after != UNTRAINED:
            self._errors.pop(task, None)
        if (task, split) not in self._left_open:
            self._reporter.tell(Unevaluated(step=step, after=after, task=task, split=split, reason=reason))
        self._left_open[task, split] = reason


class _Reading:
    """Batches up to the one that cannot be read. Why it cannot is kept, and the others are met."""

    def __init__(self, batches: Iterator[Samples]) -> None:
        self.trouble = ""
        self._batches = batches

    def __iter__(self) -> Iterator[Samples]:
        try:
            yield from self._batches
        except Exception as error:  # whatever is wrong with one file, the run must go on
            self.trouble = str(error) or type(error).__name__
