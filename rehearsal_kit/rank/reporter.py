"""What a rank tells: records go up as they happen, steps a few times a second, and rank 0 keeps them all.

All of it is for people and plots: where it cannot be kept, that is told, and the run goes on.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rehearsal_kit.buffer.states import Representatives
from rehearsal_kit.learning.summed_step import Stepped
from rehearsal_kit.record.records import InABranch, NotKept, Record, StateChanged, Steps
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.seen import SeenRecords
from rehearsal_kit.record.timeline_file import TimelineFile

PUBLISH_INTERVAL_S = 0.25


class Reporter:
    """Rank 0 speaks for all ranks; the others only acknowledge commands and say how they ended.

    publish: is given a record and, on rank 0, the number of its line in the timeline of the run.
    """

    def __init__(self, run: RunFolder, rank: int, publish: Callable[[Record, int | None], None]) -> None:
        self.branch = 0
        """That is written into every record from now on."""
        self._rank = rank
        self._publish = publish
        self._file = run.timeline
        self._told = SeenRecords()
        self._timeline = TimelineFile(run.timeline) if rank == 0 else None
        self._refused: dict[str, str] = {}
        """Why something cannot be kept now, by what it is."""
        self._state = ("", "")
        self._losses: list[float] = []
        self._terms: dict[str, float] = {}
        self._ages: list[int] = []
        self._busy: list[float] = []
        self._first = self._task = self._rows = self._representatives = self._remote = self._stored = 0
        self._began = self._seconds = self._waited = self._hidden = 0.0

    def goes_on_from(self, checkpoint: int) -> None:
        """Tell nothing twice from here on that was told after this checkpoint; 0: from the beginning."""
        if self._rank == 0:
            self._told = SeenRecords.since(self._file, checkpoint)

    def tell(self, record: Record) -> None:
        """Something that concerns the whole run; said by rank 0 only."""
        if self._rank == 0:
            self.tell_of_myself(record)

    def tell_of_myself(self, record: Record) -> None:
        """Something that concerns this rank."""
        if isinstance(record, InABranch):
            record = replace(record, branch=self.branch)
        if self._told.has(record):
            return
        self._told.leave(record)
        if self._timeline is None:
            self._publish(record, None)
        else:
            self._keep(self._timeline, record)

    def _keep(self, timeline: TimelineFile, record: Record) -> None:
        try:
            line: int | None = timeline.append(record)
        except (OSError, ValueError) as error:  # a full disk: the kernels that are there hear of it
            line = None
            self._cannot_keep("timeline", f"{error}")
        self._publish(record, line)
        if line is not None:
            self._can_keep("timeline")

    def _cannot_keep(self, what: str, reason: str) -> None:
        if what not in self._refused:
            self._refused[what] = reason
            self._say(NotKept(what=what, reason=reason, time=time.time()))

    def _can_keep(self, what: str) -> None:
        if self._refused.pop(what, None) is not None:
            self._say(NotKept(what=what, reason="", time=time.time()))

    def _say(self, record: NotKept) -> None:
        line = None
        with contextlib.suppress(OSError):  # it is told all the same
            line = None if self._timeline is None else self._timeline.append(record)
        self._publish(record, line)

    def state(self, step: int, state: str, *, reason: str = "") -> None:
        """What the run does from now on, and why; said when it changes."""
        if (state, reason) != self._state:
            self._state = (state, reason)
            self.tell(StateChanged(step=step, state=state, reason=reason))

    def stepped(self, step: int, task: int, *, stepped: Stepped, seconds: float) -> None:
        """One training step is done; told together with others a few times a second."""
        if self._told.has_step(self.branch, step):
            self._forget()
            return
        if not self._losses:
            self._first, self._task, self._began = step, task, time.monotonic()
        self._losses.append(stepped.loss)
        self._busy = [
            a + b for a, b in zip(self._busy or [0.0] * len(stepped.busy), stepped.busy, strict=True)
        ]
        for name, value in stepped.terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value
        self._seconds += seconds
        self._rows += stepped.rows
        if time.monotonic() - self._began > PUBLISH_INTERVAL_S:
            self.flush()

    def buffer_worked(self, seconds: float, *, waited: float) -> None:
        """How long the buffer worked for the step now under way, and how long that had to wait for it."""
        self._waited += waited
        self._hidden += max(0.0, seconds - waited)

    def held(self, stored: int) -> None:
        """How many samples the buffers held at the draw for the step now under way."""
        self._stored = stored

    def replayed(self, drawn: Representatives) -> None:
        """Representatives that the step now under way is trained on."""
        self._representatives += len(drawn.owners)
        self._remote += int((drawn.owners != self._rank).sum())

    def distilled(self, ages: Sequence[int]) -> None:
        """Steps since the stored outputs were made with which the step under way compares samples."""
        self._ages.extend(ages)

    def flush(self) -> None:
        """Tell of the steps that no record has told of yet."""
        if not self._losses:
            return
        steps = Steps(
            first=self._first,
            task=self._task,
            losses=tuple(self._losses),
            seconds=self._seconds,
            waited=self._waited,
            hidden=self._hidden,
            representatives=self._representatives,
            remote=self._remote,
            stored=self._stored,
            time=time.time(),
            busy=tuple(self._busy),
            rows=self._rows,
            terms={name: total / len(self._losses) for name, total in self._terms.items()},
            distilled=len(self._ages),
            outputs_age=statistics.fmean(self._ages) if self._ages else None,
        )
        self._forget()
        self.tell(steps)

    def _forget(self) -> None:
        self._losses, self._ages, self._busy, self._terms = [], [], [], {}
        self._seconds = self._waited = self._hidden = 0.0
        self._rows = self._representatives = self._remote = 0

    def close(self) -> None:
        """Close the file of rank 0."""
        if self._timeline is not None:
            self._timeline.close()
