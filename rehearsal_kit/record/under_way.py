"""Where a run is in its task under way, and how arrivals keep up; kept up to date record by record."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from rehearsal_kit.record.records import (
    Applied,
    Record,
    StateChanged,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
)

WINDOW = 5
"""Tasks over which arrivals are compared with what was trained."""


@dataclass(frozen=True)
class RunState:
    """Where a run is, in samples of one rank: they stay what they are when the batch is changed."""

    batch: float
    strategy: str
    """Name of the strategy in force now."""
    task: int
    """The last that was begun."""
    size: float
    """Size of the task begun last, over all its epochs."""
    left: float
    """What is left of `size`."""
    began_with: str
    """The strategy in force when it was begun."""


class UnderWay:
    """Takes in records in order."""

    KINDS = (Applied, TaskArrived, TaskBegan, Steps, StateChanged, TaskEnded)

    def __init__(self) -> None:
        self._told: tuple[float, str] | None = None
        """Batch and strategy that were told last; None: none were yet."""
        self._strategy = self._began_with = ""
        self._task = -1
        self._size = self._left = 0.0
        """Samples of the task begun last, and those left of it; steps as long as no batch is known."""
        self._arrived = 0
        self._ends: deque[int] = deque(maxlen=WINDOW)
        """How many tasks had arrived when each of the last ones ended."""

    @property
    def run_state(self) -> RunState | None:
        """State of the task that was begun last; None before there is one."""
        if self._task < 0:
            return None
        batch = 1.0 if self._told is None else self._told[0]
        return RunState(batch, self._strategy, self._task, self._size, self._left, self._began_with)

    def grows(self, share: float) -> bool:
        """Whether more arrived than was trained since some tasks ago; share: trained of the one under way.

        Arrivals carry no time, but records stand in order. What was there before the first task ended does
        not count, and one more is no trend.
        """
        return bool(self._ends) and self._arrived - self._ends[0] > len(self._ends) - 1 + share + 1

    def take(self, record: Record) -> None:
        """One more record of these kinds."""
        match record:
            case Applied():
                self._apply(record)
            case TaskArrived(task=task):
                self._arrived = task + 1  # the same may arrive again where another branch begins
            case TaskBegan(task=task, steps=steps):
                batch, strategy = self._told or (1.0, "")
                self._task, self._size = task, steps * batch
                self._left, self._strategy, self._began_with = self._size, strategy, strategy
            case Steps():
                batch = 1.0 if self._told is None else self._told[0]
                self._left = max(0.0, self._left - record.count * batch)
            case StateChanged(state="paused", reason=reason) if reason:
                self._left = self._size  # the ranks went back to where the task began
            case TaskEnded():
                self._left = 0.0
                self._ends.append(self._arrived)

    def _apply(self, record: Applied) -> None:
        settings = record.settings
        if "batch" in settings:
            batch, strategy = float(record.batch or settings["batch"]), str(settings.get("strategy", ""))
            if self._told is None:  # it was in force before it was told
                self._size, self._left, self._began_with = self._size * batch, self._left * batch, strategy
            self._told = batch, strategy
        self._strategy = str(settings.get("strategy", self._strategy))
