"""The append-only list of records of a run: the only thing a plot reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, overload

from rehearsal_kit.errors import SettingsError
from rehearsal_kit.telemetry import (
    IN_A_BRANCH,
    UNTRAINED,
    BranchBegan,
    CheckpointTaken,
    Evaluated,
    Record,
    Restored,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    TasksReordered,
    from_plain,
)

Kind = TypeVar("Kind", bound=Record)
OF_THE_WORLD = (TaskArrived, TaskSetAside, Restored)
"""Records of a position that are true in every branch: nobody can roll back what has arrived."""


class Timeline:
    """Records in order of arrival. Any thread may append while any other reads."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: list[Record] = list(records)
        self._first = 0
        self._began = {record.branch: record for record in self._records if isinstance(record, BranchBegan)}
        self._grown = threading.Condition()

    @staticmethod
    def load(path: str | Path) -> Timeline:
        """The timeline that rank 0 wrote as JSON lines; a torn last line is left out."""
        lines = Path(path).read_text().split("\n")
        return Timeline(from_plain(json.loads(line)) for line in lines[:-1])

    def append(self, record: Record) -> None:
        """Add one record and wake whoever waits for it."""
        with self._grown:
            self._records.append(record)
            if isinstance(record, BranchBegan):
                self._began = {**self._began, record.branch: record}
            self._grown.notify_all()

    def wait(self, length: int, timeout: float) -> bool:
        """Wait until there are more than `length` records; False when `timeout` seconds passed first."""
        with self._grown:
            return self._grown.wait_for(lambda: len(self._records) > length, timeout)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def records(self, kind: None = None, *, since: int = 0) -> list[Record]: ...
    @overload
    def records(self, kind: type[Kind], *, since: int = 0) -> list[Kind]: ...
    def records(self, kind: type[Any] | None = None, *, since: int = 0) -> list[Any]:
        """A copy of the records of one kind (or all), from position `since` on."""
        with self._grown:
            chosen = self._records[since:]
        return chosen if kind is None else [record for record in chosen if isinstance(record, kind)]

    def last(self, kind: type[Kind]) -> Kind | None:
        """The newest record of one kind."""
        with self._grown:
            for record in reversed(self._records):
                if isinstance(record, kind):
                    return record
        return None

    def newest(self, kinds: tuple[type[Any], ...]) -> Record | None:
        """The newest record of any of these kinds."""
        with self._grown:
            return next((r for r in reversed(self._records) if isinstance(r, kinds)), None)

    # Branches -------------------------------------------------------------------------------------------

    @property
    def branches(self) -> list[int]:
        """Numbers of the branches, the newest last; 0 alone where nobody rolled back."""
        return [self._first, *self._began]

    def lineage(self, branch: int | None = None) -> Timeline:
        """The records that led to where a branch is now; None: the newest branch.

        Those of other branches count up to the checkpoint that was gone back to. A run without branches, and
        a lineage, is its own lineage: nothing is copied. SettingsError for a branch that there is not.
        """
        branches = self.branches
        chosen = branches[-1] if branch is None else branch
        if chosen not in branches:
            raise SettingsError(
                f"branch is {branch!r}; this run has {', '.join(map(str, branches))}; every roll_back begins "
                "one."
            )
        if len(branches) == 1:
            return self
        records, reach = self._reach(chosen)
        straight = Timeline(r for place, r in enumerate(records) if _leads(r, place, reach))
        straight._first, straight._began = chosen, {}
        return straight

    def left_behind(self) -> dict[int, Timeline]:
        """By number of branch: what was rolled back, records of positions only; empty for most runs."""
        if not self._began:
            return {}
        records, reach = self._reach(self.branches[-1])
        left: dict[int, Timeline] = {}
        for place, record in enumerate(records):
            if isinstance(record, IN_A_BRANCH) and not _leads(record, place, reach):
                left.setdefault(record.branch, Timeline()).append(record)
        return left

    def _reach(self, branch: int) -> tuple[list[Record], dict[int, int]]:
        """All records, and up to which place those of which branches lead to this one."""
        records = self.records()
        places = {r.checkpoint: (place, r.branch) for place, r in enumerate(records) if _is_taken(r)}
        reach, began = {branch: len(records)}, self._began
        while branch in began and began[branch].checkpoint in places:
            place, parent = places[began[branch].checkpoint]
            if parent >= branch:  # no run tells so; a file that does must not hang a kernel
                break
            branch, reach[parent] = parent, place
        return records, reach

    # Tasks ----------------------------------------------------------------------------------------------

    def tasks(self) -> dict[int, TaskArrived]:
        """All tasks that have arrived, by number as of now."""
        return {
            number: arrived if arrived.task == number else replace(arrived, task=number)
            for number, (arrived, _) in self._queue().items()
        }

    def set_aside(self) -> dict[int, TaskSetAside]:
        """Of the tasks that had arrived: those that will not be trained, by number as of now."""
        return {number: aside for number, (_, aside) in self._queue().items() if aside is not None}

    def waiting(self) -> dict[int, TaskArrived]:
        """Tasks still to be begun, by number as of now."""
        begun = {record.task for record in self.records(TaskBegan)}
        gone = begun | self.set_aside().keys()
        return {number: arrived for number, arrived in self.tasks().items() if number not in gone}

    def _queue(self) -> dict[int, tuple[TaskArrived, TaskSetAside | None]]:
        queue: dict[int, tuple[TaskArrived, TaskSetAside | None]] = {}
        begun: set[int] = set()
        # Nearly all records are about steps: they are left out before anything is matched.
        kinds = (TaskArrived, TaskBegan, TasksReordered, TaskSetAside)
        for record in [record for record in self.records() if isinstance(record, kinds)]:
            match record:
                case TaskArrived(task=task):
                    queue[task] = (record, None)
                case TaskBegan(task=task):
                    begun.add(task)
                case TasksReordered(first=first, order=order):
                    moved = [queue.pop(task, None) for task in order]
                    queue |= {first + i: each for i, each in enumerate(moved) if each is not None}
                case TaskSetAside():
                    _set_aside(queue, record, begun)
        return dict(sorted(queue.items()))

    # Numbers --------------------------------------------------------------------------------------------

    def losses(self) -> tuple[list[int], list[float]]:
        """Step numbers and the loss of each step."""
        steps: list[int] = []
        losses: list[float] = []
        for record in self.records(Steps):
            steps.extend(range(record.first, record.first + len(record.losses)))
            losses.extend(record.losses)
        return steps, losses

    def training_seconds(self) -> float:
        """Spent in the training steps of all tasks that ended."""
        return sum(record.seconds for record in self.records(TaskEnded))

    def error_matrix(self, split: str) -> list[list[float | None]]:
        """Row i, column j: error on task j after task i was trained; None where it was not evaluated."""
        rows: dict[int, dict[int, float]] = {}
        for record in self.records(Evaluated):
            if record.split == split and record.after >= record.task:
                rows.setdefault(record.after, {})[record.task] = record.error
        size = 1 + max((max(after, *row) for after, row in rows.items()), default=-1)
        return [[rows.get(i, {}).get(j) for j in range(size)] for i in range(size)]

    def untaught(self) -> tuple[list[float | None], list[float | None]]:
        """Test error on each task just before it was trained, and that of the untrained network.

        For forward transfer; None where it was not evaluated. Before the first task both are the same.
        """
        before: dict[int, float] = {}
        untrained: dict[int, float] = {}
        for record in self.records(Evaluated):
            if record.split == "test" and record.after == UNTRAINED:
                untrained[record.task] = record.error
            elif record.split == "test" and record.after < record.task:
                before[record.task] = record.error
        before = {**({0: untrained[0]} if 0 in untrained else {}), **before}
        tasks = range(1 + max([*before, *untrained], default=-1))
        return [before.get(task) for task in tasks], [untrained.get(task) for task in tasks]

    def metrics(self, split: str) -> list[Mapping[str, float]]:
        """The last metrics of each task; empty where it was not evaluated."""
        last: dict[int, Mapping[str, float]] = {}
        for record in self.records(Evaluated):
            if record.split == split and record.after >= record.task:
                last[record.task] = record.metrics
        return [last.get(task, {}) for task in range(1 + max(last, default=-1))]


def _is_taken(record: Record) -> TypeGuard[CheckpointTaken]:
    return isinstance(record, CheckpointTaken)


def _leads(record: Record, place: int, reach: Mapping[int, int]) -> bool:
    """Whether a record at this place led to the branch that all of `reach` leads to."""
    if not isinstance(record, IN_A_BRANCH) or isinstance(record, OF_THE_WORLD):
        return True
    return place <= reach.get(record.branch, -1)


def _set_aside(
    queue: dict[int, tuple[TaskArrived, TaskSetAside | None]], record: TaskSetAside, begun: Set[int]
) -> None:
    """Find the task that a record without a number is about; one that never arrived is not there."""
    for number, (arrived, aside) in sorted(queue.items()):
        same = (arrived.name, arrived.path) == (record.name, record.path)
        if same and aside is None and number not in begun:
            queue[number] = (arrived, record)
            return
