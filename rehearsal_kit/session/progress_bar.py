"""A run as a progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rehearsal_kit.base.errors import RankError
from rehearsal_kit.base.terminal_bar import TerminalBar
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded
from rehearsal_kit.record.records import (
    BranchBegan,
    CheckpointFailed,
    NotKept,
    Record,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.backlog import backlog
from rehearsal_kit.session.session import Session

PLAIN_S = 10.0
"""Seconds between two lines where there is no terminal on which one could be renewed."""
SOON_S = 1e-3
"""Seconds before which a bar shows nothing by itself; any above zero."""
SAY_S = 2.0
"""Seconds between two looks at the backlog."""


def follow(session: Session, title: str, *, expected: int, finish: bool) -> None:
    """Draw the progress of a run until it is over.

    expected: tasks that will come. finish: whether to finish the stream once they all have. RankError
    where the ranks have paused on their own, which nobody is there to mend.
    """
    seen, finished = 0, not finish
    # The first task tells how long the others will be: equally long, or longer and longer from scratch.
    weights = [len(session.strategy.tasks(task)) for task in range(expected)]
    with new_bar(title) as bar:
        bar.refresh()
        progress = Progress(bar, weights)
        while not session.over:
            session.timeline.wait(seen, 0.2)
            before, seen = seen, len(session.timeline)
            records = session.timeline.records(since=before, until=seen)
            progress.take(records)
            if any(isinstance(record, BranchBegan) for record in records):
                progress.branch_off(Timeline(session.timeline.records(until=seen)).lineage())
            progress.say(session.timeline)
            if session.trouble:
                raise RankError(session.trouble)
            if not finished and len(_settled(session)) >= expected:
                session.finish_stream()
                finished = True


def train_to_the_end(session: Session, title: str, *, expected: int, finish: bool) -> None:
    """Draw the progress of a run, as `follow` does, and see to it that it has learned all it was to.

    Raises what `Session.wait` raises, and RankError where somebody has stopped the run or its cluster has
    ended: what half a run has learned must not be taken for what a whole one would have.
    """
    follow(session, title, expected=expected, finish=finish)
    if (outcome := session.wait()) != "finished":
        run = str(session.run.path)
        raise RankError(
            f"run {run} was {outcome} before it had learned all; "
            f"rk.resume({run!r}, rk.start_cluster()) goes on with it."
        )


def new_bar(title: str) -> Any:
    """One line that is renewed on a terminal; in a file or a pipe, a plain line now and then.

    It shows nothing until it is asked to: a bar that is interrupted while it is made would keep tqdm's lock.
    """
    common: dict[str, Any] = {"desc": title, "unit": "step", "delay": SOON_S}
    if sys.stderr.isatty():
        return TerminalBar(**common, dynamic_ncols=True)
    lines: Any = PlainLines(sys.stderr)
    return TerminalBar(**common, file=lines, mininterval=PLAIN_S, maxinterval=PLAIN_S)


class PlainLines:
    """Where there is no terminal: what would be written over the last line becomes one of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what is to be seen of it."""
        if seen := text.replace("\r", "").strip():
            self._stream.write(f"{seen}\n")
        return len(text)

    def flush(self) -> None:
        """Pass it on."""
        self._stream.flush()


class Progress:
    """Turns records into a bar."""

    def __init__(self, bar: Any, weights: Sequence[int]) -> None:
        self._bar = bar
        self._weights = weights
        self._known = 0
        """Steps of the tasks that were begun."""
        self._task = 0
        self._said_at = 0.0

    def take(self, records: Sequence[Record]) -> None:
        """Move on by these."""
        bar = self._bar
        for record in records:
            match record:
                case TaskBegan(task=task, steps=steps):
                    self._task = task
                    self._expect(self._known + steps, steps)
                case Steps():
                    bar.update(record.count)
                case TaskEnded():  # perhaps earlier than planned, by a person's wish
                    self._known = bar.n
                case TaskSetAside(name=name, reason=reason):
                    bar.write(f"set aside {name}: {reason}")
                case GenerationEnded(reason=reason):
                    bar.write(f"recovering: {reason}")
                case GenerationBegan(workers=workers, of=of) if len(workers) < of:
                    bar.write(f"goes on with {len(workers)} of {of} workers")
                case CheckpointFailed(checkpoint=number, reason=reason):
                    bar.write(f"checkpoint {number} could not be written or used: {reason}")
                case NotKept(what=what, reason=reason) if reason:
                    bar.write(f"{what} cannot be kept, the run goes on: {reason}")

    def branch_off(self, lineage: Timeline) -> None:
        """Begin again with what led to the branch that is new."""
        self._bar.reset()
        self._known = 0
        self._bar.write(f"goes on from a checkpoint as branch {lineage.branches[-1]}")
        self.take([r for r in lineage.records() if isinstance(r, (TaskBegan, Steps, TaskEnded))])

    def say(self, timeline: Timeline) -> None:
        """What waits, now and then."""
        if time.monotonic() - self._said_at < SAY_S:
            return
        self._said_at = time.monotonic()
        words = f"task {self._task + 1} of {len(self._weights)}, {backlog(timeline).words}"
        self._bar.set_postfix_str(words, refresh=sys.stderr.isatty())

    def _expect(self, known: int, steps: int) -> None:
        task, weights = self._task, self._weights
        self._known = known
        weight = weights[task] if task < len(weights) else 1
        self._bar.total = known + steps * sum(weights[task + 1 :]) // weight
        self._said_at = 0.0


def _settled(session: Session) -> set[tuple[str, str]]:
    """Tasks that have come, for good or ill."""
    timeline = session.timeline
    arrived = {(task.name, task.path) for task in timeline.records(TaskArrived)}
    return arrived | {(task.name, task.path) for task in timeline.records(TaskSetAside)}
