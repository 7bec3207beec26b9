"""The append-only list of records of a run: the only thing a plot reads.

What is asked often (tasks, errors, the task under way) is kept up to date record by record, so that no
question looks through all records. A live timeline also bounds them: the oldest steps are told in fewer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.record.branches import Place, before, decided_at, leads, reach, told_to
from rehearsal_kit.record.record_lines import RecordLines
from rehearsal_kit.record.record_store import RecordStore
from rehearsal_kit.record.records import (
    BranchBegan,
    CheckpointTaken,
    Evaluated,
    InABranch,
    Record,
    StabilityLooked,
    Steps,
    TaskArrived,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.scores import Scores
from rehearsal_kit.record.task_queue import TaskQueue
from rehearsal_kit.record.under_way import RunState, UnderWay

Kind = TypeVar("Kind", bound=Record)
Answer = TypeVar("Answer")


class Timeline:
    """Records in order of arrival. Any thread may append while any other reads.

    bounded: hold no more for a longer run: of old steps the lowest and highest losses and the exact sums, of
    other kinds that come again and again the newest. Everything of tasks, errors and notes stays.
    """

    def __init__(self, records: Iterable[Record] = (), *, bounded: bool = False) -> None:
        self._bounded = bounded
        self._length = 0
        self._begin()
        self._first = 0
        self._began: dict[int, BranchBegan] = {}
        self._alone = False
        """Whether this is a lineage, which has one branch."""
        self._newest: _Split | None = None
        """What led to the newest branch, once somebody has asked."""
        self._grown = threading.Condition()
        self.extend(records)

    @staticmethod
    def load(path: str | Path) -> Timeline:
        """All that rank 0 wrote as JSON lines; a torn last line is left out, a damaged one said as well."""
        return Timeline(record for _, record in RecordLines(Path(path)).read() if record is not None)

    def append(self, record: Record) -> None:
        """Add one record and wake whoever waits for it."""
        self.extend([record])

    def extend(self, records: Iterable[Record]) -> None:
        """Add records in this order and wake whoever waits for them."""
        with self._grown:
            for record in records:
                self._take(self._length, record)
            self._grown.notify_all()

    def fill(self, placed: Iterable[tuple[int, Record]], length: int) -> None:
        """Add what is left of `length` records: each at its place among them, in order."""
        with self._grown:
            first = self._length
            for place, record in placed:
                self._take(first + place, record)
            self._length = first + length
            self._grown.notify_all()

    def _put(self, place: int, record: Record) -> None:
        with self._grown:
            self._take(place, record)
            self._grown.notify_all()

    def wait(self, length: int, timeout: float) -> bool:
        """Wait until there are more than `length` records; False when `timeout` seconds passed first."""
        with self._grown:
            return self._grown.wait_for(lambda: self._length > length, timeout)

    def __len__(self) -> int:
        """How many were appended, whether or not all of them are still there."""
        return self._length

    @overload
    def records(self, kind: None = None, *, since: int = 0, until: int | None = None) -> list[Record]: ...
    @overload
    def records(self, kind: type[Kind], *, since: int = 0, until: int | None = None) -> list[Kind]: ...
    def records(
        self, kind: type[Any] | None = None, *, since: int = 0, until: int | None = None
    ) -> list[Any]:
        """A copy of the records of one kind (or all), from position `since` on and before `until`."""
        with self._grown:
            if kind is not None:
                return self._store.of(kind).between(since, until)
            return [record for _, record in self._store.placed(since, until)]

    def placed(self) -> list[tuple[int, Record]]:
        """Everything that is there with its place among all that was appended, in order."""
        with self._grown:
            return self._store.placed()

    def latest(self, kind: type[Kind], count: int) -> list[Kind]:
        """The newest records of one kind, at most `count` of them, in order."""
        with self._grown:
            return self._store.of(kind).records[-count:]

    def last(self, kind: type[Kind]) -> Kind | None:
        """The newest record of one kind."""
        return next(iter(self.latest(kind, 1)), None)

    def newest(self, kinds: tuple[type[Any], ...], *, since: int = 0) -> Record | None:
        """The newest record of any of these kinds, from position `since` on."""
        with self._grown:
            return self._store.newest(kinds, since)

    # Branches -------------------------------------------------------------------------------------------

    @property
    def branches(self) -> list[int]:
        """Numbers of the branches, the newest last; 0 alone where nobody rolled back."""
        with self._grown:
            return [self._first, *self._began]

    def lineage(self, branch: int | None = None) -> Timeline:
        """The records that led to where a branch is now; None: the newest branch.

        Those of other branches count up to the checkpoint that was gone back to. A run without branches, and
        a lineage, is its own lineage: nothing is copied. SettingsError for a branch that there is not.
        """
        with self._grown:
            branches = self.branches
            chosen = branches[-1] if branch is None else branch
            if chosen not in branches:
                raise SettingsError(
                    f"branch is {branch!r}; this run has {', '.join(map(str, branches))}; every roll_back "
                    "begins one."
                )
            if len(branches) == 1:
                return self
            return (self._split() if chosen == branches[-1] else self._towards(chosen)).led

    def left_behind(self) -> dict[int, Timeline]:
        """What was rolled back, by number of branch: records of positions only; empty for most runs."""
        with self._grown:
            return {**self._split().left} if self._began else {}

    def _split(self) -> _Split:
        if self._newest is None:
            self._newest = self._towards(self.branches[-1])
        return self._newest

    def _towards(self, branch: int) -> _Split:
        taken = {r.checkpoint: (place, r.branch) for place, r in self._store.of(CheckpointTaken).placed()}
        split = _Split(branch, reach(branch, self._began, taken), bounded=self._bounded)
        for place, record in self._store.placed():
            split.take(place, record)
        return split

    # Tasks ----------------------------------------------------------------------------------------------

    def tasks(self) -> Mapping[int, TaskArrived]:
        """All tasks that have arrived, by number as of now."""
        with self._grown:
            return self._queue.tasks

    def set_aside(self) -> Mapping[int, TaskSetAside]:
        """Those of the tasks that had arrived that will not be trained, by number as of now."""
        with self._grown:
            return self._queue.aside

    def stability_gaps(self) -> Mapping[int, float]:
        """The largest error of earlier tasks in the first steps of each, relative to that before; by task.

        Only tasks in whose first steps somebody looked: `Training(stability_every=...)`.
        """
        looked = {record.task: record.gap for record in self.records(StabilityLooked)}
        return {task: gap for task, gap in looked.items() if gap is not None}

    def waiting(self) -> Mapping[int, TaskArrived]:
        """Tasks still to be begun, by number as of now."""
        with self._grown:
            return self._queue.waiting

    def run_state(self) -> RunState | None:
        """Where the task is that was begun last; None before there is one."""
        with self._grown:
            return self._under_way.run_state

    def grows(self, share: float) -> bool:
        """Whether more tasks arrive than are trained; share: trained of the one under way."""
        with self._grown:
            return self._under_way.grows(share)

    # Numbers --------------------------------------------------------------------------------------------

    def losses(self) -> tuple[list[int], list[float]]:
        """Step numbers and the loss of each step that is there."""
        steps: list[int] = []
        losses: list[float] = []
        for record in self.records(Steps):
            steps.extend(record.at)
            losses.extend(record.losses)
        return steps, losses

    def training_seconds(self) -> float:
        """Spent in the training steps of all tasks that ended."""
        return sum(record.seconds for record in self.records(TaskEnded))

    def scores(self, ask: Callable[[Scores], Answer]) -> Answer:
        """What `ask` makes of all evaluations, while none is added."""
        with self._grown:
            return ask(self._scores)

    def error_matrix(self, split: str) -> list[list[float | None]]:
        """Row i, column j: error on task j after task i was trained; None where it was not evaluated."""
        with self._grown:
            return self._scores.matrix(split)

    def untaught(self) -> tuple[list[float | None], list[float | None]]:
        """Test error on each task just before it was trained, and that of the untrained network.

        For forward transfer; None where it was not evaluated. Before the first task both are the same.
        """
        with self._grown:
            return self._scores.untaught()

    def metrics(self, split: str) -> list[Mapping[str, float]]:
        """The last metrics of each task; empty where it was not evaluated."""
        with self._grown:
            return self._scores.metrics(split)

    # Inside ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._store = RecordStore(bounded=self._bounded)
        self._queue, self._scores, self._under_way = TaskQueue(), Scores(), UnderWay()
        self._told: dict[int, float] = {}
        """Where what is told of each branch ends, by branch."""

    def _take(self, place: int, record: Record) -> None:
        decided = decided_at(record)
        if decided is not None and self._told.get(decided[0], 0) > decided[1]:
            self._leave(decided)
        to = told_to(record)
        if to is not None:
            self._told[to[0]] = max(to[1], self._told.get(to[0], 0))
        self._store.append(place, record)
        self._length = place + 1
        if isinstance(record, TaskQueue.KINDS):
            self._queue.take(record)
        if isinstance(record, UnderWay.KINDS):
            self._under_way.take(record)
        elif isinstance(record, Evaluated):
            self._scores.take(record)
        if self._alone:
            return
        if isinstance(record, BranchBegan):
            self._began[record.branch] = record
        if isinstance(record, BranchBegan) or self._is_origin(record):
            self._newest = None  # what leads where is another matter now
        elif self._newest is not None:
            self._newest.take(place, record)

    def _leave(self, here: Place) -> None:
        """Void what was told of later places: after a kill the ranks go another way from here."""
        kept = [(place, part) for place, record in self._store.placed() if (part := before(record, here))]
        self._begin()
        self._newest = None
        for place, record in kept:
            self._take(place, record)

    def _is_origin(self, record: Record) -> bool:
        """Whether it tells only now of a checkpoint from which a branch has begun."""
        if not isinstance(record, CheckpointTaken):
            return False
        return any(began.checkpoint == record.checkpoint for began in self._began.values())


class _Split:
    """What led to one branch, as a timeline that grows with the whole, and what did not."""

    def __init__(self, branch: int, ends: Mapping[int, float], *, bounded: bool) -> None:
        self._ends = ends
        self._bounded = bounded
        self.led = Timeline(bounded=bounded)
        self.led._first, self.led._alone = branch, True
        self.left: dict[int, Timeline] = {}

    def take(self, place: int, record: Record) -> None:
        """One more record of the run, at its place in it."""
        if leads(record, place, self._ends):
            self.led._put(place, record)
        elif isinstance(record, InABranch):
            self.left.setdefault(record.branch, Timeline(bounded=self._bounded))._put(place, record)
