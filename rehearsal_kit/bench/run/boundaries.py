"""A mailbox of rank 0 that knows when a step begins, and makes wishes then."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

from rehearsal_kit.record.commands import Arrived, FinishStream, Wish
from rehearsal_kit.record.records import Record, TaskBegan


class Boundaries(ABC):
    """Rank 0 asks it before every step until it says that it is empty; what it was given takes effect then.

    It begins with one task, the only one of its run.
    """

    def __init__(self, task: Path, *, name: str) -> None:
        self._wishes = [Wish(1, Arrived(name=name, path=str(task))), Wish(2, FinishStream())]
        self._given = False
        """Whether wishes were taken out before this step."""
        self._trains = False
        """Whether the task has begun, and nobody has said stop: else rank 0 asks without any step."""

    @abstractmethod
    def _at_boundary(self, now: float) -> None:
        """A step is about to be taken, at this time: perhaps something is to be wished for before it."""

    def empty(self) -> bool:
        """Asked before every step until it says so."""
        if not self._wishes and not self._given and self._trains:
            self._at_boundary(time.perf_counter())
        self._given = bool(self._wishes)
        return not self._wishes

    def get(self) -> str:
        """The next wish."""
        return self._wishes.pop(0).to_json()

    def hear(self, record: Record, line: int | None) -> None:
        """What rank 0 tells."""
        self._trains |= isinstance(record, TaskBegan)
