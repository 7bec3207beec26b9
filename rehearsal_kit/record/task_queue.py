"""Which tasks have arrived, wait or were set aside, by number as of now; kept up to date record by record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rehearsal_kit.record.records import (
    BranchBegan,
    Record,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
)


class TaskQueue:
    """Takes in records in order; the mappings it gives are made once and never changed."""

    KINDS = (BranchBegan, TaskArrived, TaskBegan, TaskEnded, TasksReordered, TaskSetAside)

    def __init__(self) -> None:
        self._queue: dict[int, tuple[TaskArrived, TaskSetAside | None]] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._tasks: Mapping[int, TaskArrived] | None = None
        self._aside: Mapping[int, TaskSetAside] | None = None
        self._waiting: Mapping[int, TaskArrived] | None = None

    def take(self, record: Record) -> None:
        """One more record of these kinds."""
        match record:
            case TaskArrived(task=task):
                self._queue[task] = (record, None)
            case TaskBegan(task=task):
                self._begun.add(task)
            case TaskEnded(task=task):
                self._ended.add(task)
            case TasksReordered(first=first, order=order):
                moved = [self._queue.pop(task, None) for task in order]
                self._queue |= {first + i: each for i, each in enumerate(moved) if each is not None}
            case TaskSetAside():
                self._set_aside(record)
            case BranchBegan(tasks=int() as count):
                self._queue = {
                    number: (arrived, aside if number in record.aside else None)
                    for number, (arrived, aside) in self._queue.items()
                    if number < count
                }
        self._waiting = None
        if not isinstance(record, TaskBegan | TaskEnded):
            self._tasks = self._aside = None

    @property
    def tasks(self) -> Mapping[int, TaskArrived]:
        """All that have arrived."""
        if self._tasks is None:
            self._tasks = {
                number: arrived if arrived.task == number else replace(arrived, task=number)
                for number, (arrived, _) in sorted(self._queue.items())
            }
        return self._tasks

    @property
    def aside(self) -> Mapping[int, TaskSetAside]:
        """Those of `tasks` that will not be trained."""
        if self._aside is None:
            queue = sorted(self._queue.items())
            self._aside = {number: aside for number, (_, aside) in queue if aside is not None}
        return self._aside

    @property
    def waiting(self) -> Mapping[int, TaskArrived]:
        """Those of `tasks` still to be begun."""
        if self._waiting is None:
            gone = self._begun | self.aside.keys()
            self._waiting = {n: arrived for n, arrived in self.tasks.items() if n not in gone}
        return self._waiting

    def _set_aside(self, record: TaskSetAside) -> None:
        """Find the task that a record is about; one that never arrived is not there.

        The number that it was told with counts where the name agrees, also once the task has begun: its
        training may have failed. In another branch the number may be that of another task. One that was
        trained to its end stays trained, though its file may be gone by now.
        """
        named = [
            number
            for number, (arrived, aside) in sorted(self._queue.items())
            if aside is None and (arrived.name, arrived.path) == (record.name, record.path)
        ]
        if record.task in named:
            found = None if record.task in self._ended else record.task
        else:
            found = next((number for number in named if number not in self._begun), None)
        if found is not None:
            self._queue[found] = (self._queue[found][0], record)
