"""All records of a timeline by kind; where it is bounded, no more of them for a longer run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rehearsal_kit.record.rank_records import (
    Ended,
    GenerationBegan,
    GenerationEnded,
    Joined,
    LeaseTaken,
    RunOver,
    Stalled,
)
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointFailed,
    CheckpointKept,
    CheckpointTaken,
    NotKept,
    Record,
    Restored,
    StateChanged,
    Steps,
)
from rehearsal_kit.record.series import Series, merged
from rehearsal_kit.record.thinning import POINTS, thinned

NEWEST = 1_000
"""Records of a kind that comes again and again: so many of the newest stay."""
OFTEN = frozenset({
    Applied, CheckpointFailed, CheckpointKept, CheckpointTaken, Ended, GenerationBegan, GenerationEnded,
    Joined, LeaseTaken, NotKept, Restored, RunOver, Stalled, StateChanged,
})  # fmt: skip
"""Kinds that time and faults bring, not tasks and persons alone: a run that goes on has ever more of them."""


class RecordStore:
    """Not for several threads at once; the timeline has the lock.

    bounded: thin out what comes again and again. Of old steps the lowest and highest losses stay, and what
    is summed over steps; of other kinds the newest, and what is asked for later on.
    """

    def __init__(self, *, bounded: bool) -> None:
        self._bounded = bounded
        self._series: dict[type, Series[Any]] = {}
        self._losses = 0
        """Number of losses in the records of steps."""
        self._most: dict[type, int] = {}
        """Where each kind is thinned next, if that is more than usual."""
        self._grain = 1

    def append(self, place: int, record: Record) -> None:
        """One more, behind all others."""
        kind = Steps if isinstance(record, Steps) else type(record)
        series = self.of(kind)
        series.append(place, record)
        if isinstance(record, Steps):
            self._losses += len(record.losses)
            if self._bounded and self._losses > max(POINTS, self._most.get(Steps, 0)):
                self._thin_steps(series)
        elif self._bounded and kind in OFTEN and len(series) > max(2 * NEWEST, self._most.get(kind, 0)):
            self._thin(kind, series)

    def of(self, kind: type) -> Series[Any]:
        """The records of one kind."""
        series = self._series.get(kind)
        if series is None:
            series = self._series[kind] = Series()
        return series

    def placed(self, since: int = 0, until: int | None = None) -> list[tuple[int, Record]]:
        """Places and records of all kinds in order of place, from one on, up to but without another."""
        return list(merged(series.placed(since, until) for series in self._series.values()))

    def newest(self, kinds: tuple[type, ...], since: int = 0) -> Record | None:
        """The newest record of any of these kinds, from one place on."""
        there = [series for kind in kinds if (series := self._series.get(kind))]
        there = [series for series in there if series.places[-1] >= since]
        newest = max(there, key=lambda series: series.places[-1], default=None)
        record: Record | None = None if newest is None else newest.records[-1]
        return record

    def _thin(self, kind: type, series: Series[Any]) -> None:
        stays, newest = self._stays(kind, series), len(series) - NEWEST
        series.replace([pair for i, pair in enumerate(series.placed()) if i >= newest or stays(pair[1])])
        self._most[kind] = 2 * len(series)

    def _stays(self, kind: type, series: Series[Any]) -> Callable[[Any], bool]:
        """Which records stay although they are old."""
        if kind is Applied:
            return _first_of_each_kind()
        if kind is CheckpointKept:
            on_disk = self._on_disk()
            return lambda record: record.checkpoint in on_disk
        if kind is CheckpointTaken:
            needed = self._gone_back_to()
            return lambda record: record.checkpoint in needed
        first = series.records[0]
        return lambda record: record is first

    def _thin_steps(self, series: Series[Steps]) -> None:
        kept, self._grain = thinned(series.placed(), self._fences(), grain=self._grain)
        series.replace(kept)
        self._losses = sum(len(record.losses) for record in series.records)
        self._most[Steps] = 2 * self._losses

    def _fences(self) -> list[int]:
        """Places that one record of old steps may not reach across, since sums are asked up to there."""
        needed = self._gone_back_to()
        return sorted([
            *(place for place, record in self.of(CheckpointTaken).placed() if record.checkpoint in needed),
            *(place for place, record in self.of(Applied).placed() if record.number),
            *(place for place, record in self.of(StateChanged).placed() if record.reason),
        ])  # fmt: skip

    def _on_disk(self) -> set[int]:
        kept: list[CheckpointKept] = self.of(CheckpointKept).records
        return {record.checkpoint for record in kept} - {n for record in kept for n in record.removed}

    def _gone_back_to(self) -> set[int]:
        """Checkpoints from which a branch began or may still begin."""
        return self._on_disk() | {began.checkpoint for began in self.of(BranchBegan).records}


def _first_of_each_kind() -> Callable[[Any], bool]:
    """Keeps what tells that a command of a kind was carried out at all."""
    seen: set[str] = set()

    def stays(record: Applied) -> bool:
        new = not record.refused and record.kind not in seen
        if new:
            seen.add(record.kind)
        return new

    return stays
