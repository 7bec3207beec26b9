"""The stability gap: how much worse earlier tasks become in the first steps after an arrival.

The jump that final tables do not show, and that a person at the dashboard sees (De Lange, van de Ven and
Tuytelaars, "Continual evaluation for lifelong learning: identifying the stability gap", ICLR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.record.records import StabilityLooked

WINDOW = 50
"""Steps after an arrival within which earlier tasks are looked at."""


class Stability:
    """Looks at some watched samples of earlier tasks now and then; all ranks call it at the same steps.

    glance: the mean error of the tasks before this one on a few watched samples; None where there is none.
    every: steps between two looks; 0: none is taken.
    """

    def __init__(self, glance: Callable[[int], float | None], reporter: Reporter, *, every: int) -> None:
        self._glance = glance
        self._reporter = reporter
        self._every = every
        self._task = -1
        """The task that arrived; -1: none is looked after."""
        self._before = self._worst = 0.0
        self._at = 0

    def arrived(self, task: int) -> None:
        """A task is about to be trained: what the error on those before it is now."""
        self._task = -1
        if self._every and (error := self._glance(task)) is not None:
            self._task, self._before, self._worst, self._at = task, error, error, 0

    def looks_after(self, loader: TaskLoader) -> bool:
        """Whether it looks at earlier tasks after the step of which this is the loader."""
        its = loader.task == self._task
        return its and loader.taken % self._every == 0 and loader.taken <= WINDOW

    def stepped(self, loader: TaskLoader, *, step: int) -> None:
        """One step of a task was taken."""
        if loader.task != self._task:
            return
        if self.looks_after(loader):
            error = self._glance(loader.task)
            if error is not None and error > self._worst:
                self._worst, self._at = error, loader.taken
        if loader.taken >= WINDOW:
            self.ended(loader.task, step=step)

    def ended(self, task: int, *, step: int) -> None:
        """Tell what was seen of this task, unless that was told when the window was over."""
        if task == self._task:
            self._task = -1
            self._reporter.tell(
                StabilityLooked(step=step, task=task, before=self._before, worst=self._worst, at=self._at)
            )

    def to_plain(self) -> dict[str, Any]:
        """What was seen of the task under way, for a checkpoint."""
        return {"task": self._task, "before": self._before, "worst": self._worst, "at": self._at}

    def restore(self, plain: Mapping[str, Any] | None) -> None:
        """Go on where `to_plain` was called; None: of a checkpoint of an earlier version."""
        found = plain or {"task": -1, "before": 0.0, "worst": 0.0, "at": 0}
        self._task, self._at = int(found["task"]), int(found["at"])
        self._before, self._worst = float(found["before"]), float(found["worst"])
