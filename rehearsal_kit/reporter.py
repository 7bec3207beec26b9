"""What a rank tells: records go up as they happen, steps a few times a second, and rank 0 keeps them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from rehearsal_kit.rounds import Representatives
from rehearsal_kit.run_folder import Ledger, RunFolder
from rehearsal_kit.telemetry import Record, StateChanged, Steps, to_plain

PUBLISH_INTERVAL_S = 0.25


class Reporter:
    """Rank 0 speaks for all ranks; the others only acknowledge commands and say how they ended."""

    def __init__(self, run: RunFolder, rank: int, publish: Callable[[Record], None]) -> None:
        self._rank = rank
        self._publish = publish
        self._timeline = Ledger(run.timeline, durable=False) if rank == 0 else None
        self._state = ("", "")
        self._losses: list[float] = []
        self._terms: dict[str, float] = {}
        self._ages: list[int] = []
        self._first = self._task = self._representatives = self._remote = self._stored = 0
        self._began = self._seconds = self._waited = self._hidden = 0.0

    def tell(self, record: Record) -> None:
        """Something that concerns the whole run; said by rank 0 only."""
        if self._rank == 0:
            self.tell_of_myself(record)

    def tell_of_myself(self, record: Record) -> None:
        """Something that concerns this rank."""
        self._publish(record)
        if self._timeline is not None:
            self._timeline.append(to_plain(record))

    def state(self, step: int, state: str, *, reason: str = "") -> None:
        """What the run does from now on, and why; said when it changes."""
        if (state, reason) != self._state:
            self._state = (state, reason)
            self.tell(StateChanged(step=step, state=state, reason=reason))

    def stepped(self, step: int, task: int, *, terms: Mapping[str, float], seconds: float) -> None:
        """One training step is done; told together with others a few times a second."""
        if not self._losses:
            self._first, self._task, self._began = step, task, time.monotonic()
        self._losses.append(sum(terms.values()))
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value
        self._seconds += seconds
        if time.monotonic() - self._began > PUBLISH_INTERVAL_S:
            self.flush()

    def drew(
        self, drawn: Representatives | None, waited: float, *, worked: float, trained: bool = True
    ) -> None:
        """What the step now under way got from the buffer, how long it waited for it, how long it took.

        trained: whether the representatives are trained on.
        """
        self._waited += waited
        self._hidden += max(0.0, worked - waited)
        if drawn is not None:
            self._representatives += len(drawn.owners) if trained else 0
            self._remote += int((drawn.owners != self._rank).sum()) if trained else 0
            self._stored = drawn.stored

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
            terms={name: total / len(self._losses) for name, total in self._terms.items()},
            distilled=len(self._ages),
            outputs_age=statistics.fmean(self._ages) if self._ages else None,
        )
        self._losses, self._ages, self._terms = [], [], {}
        self._seconds = self._waited = self._hidden = 0.0
        self._representatives = self._remote = 0
        self.tell(steps)

    def close(self) -> None:
        """Close the file of rank 0."""
        if self._timeline is not None:
            self._timeline.close()
