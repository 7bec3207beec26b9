"""The append-only list of records of a run: the only thing a plot reads."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from rehearsal_kit.telemetry import UNTRAINED, Evaluated, Record, Steps, TaskEnded, from_plain

Kind = TypeVar("Kind", bound=Record)


class Timeline:
    """Records in order of arrival. Any thread may append while any other reads."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._records: list[Record] = list(records)
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
