"""Old steps told in fewer records: sums stay exact, of the losses the lowest and the highest are kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rehearsal_kit.record.records import Steps

POINTS = 16_384
"""Losses that a live timeline holds at most; those of a few thousand tasks may be more."""
WHOLE = 4_096
"""Newest losses that are never left out."""

Placed = tuple[int, Steps]
"""Place of a record in its timeline, and the record."""


@dataclass(frozen=True, kw_only=True)
class ThinnedSteps(Steps):
    """Consecutive steps of one task of which only the lowest and the highest loss are known."""

    held: int
    """How many steps these are."""
    chosen: tuple[int, ...]
    """Numbers of the steps that `losses` are of."""

    @property
    def count(self) -> int:
        """How many steps these are."""
        return self.held

    @property
    def at(self) -> Sequence[int]:
        """Numbers of the steps that `losses` are of."""
        return self.chosen


def merged(steps: Sequence[Steps]) -> Steps:
    """One record of the same steps; they follow each other in one task of one branch."""
    if len(steps) == 1:
        return steps[0]
    points = [(loss, at) for record in steps for at, loss in zip(record.at, record.losses, strict=True)]
    chosen = sorted({min(points), max(points)}, key=lambda point: point[1])
    held = sum(r.count for r in steps)
    sums = {name: sum(getattr(r, name) for r in steps) for name in Steps.SUMS}
    ages = [r.outputs_age * r.distilled for r in steps if r.outputs_age is not None]
    names = dict.fromkeys(name for record in steps for name in record.terms)
    ranks = len(steps[-1].busy)
    return ThinnedSteps(
        first=steps[0].first,
        task=steps[-1].task,
        losses=tuple(loss for loss, _ in chosen),
        chosen=tuple(at for _, at in chosen),
        held=held,
        stored=steps[-1].stored,
        time=steps[-1].time,
        terms={name: sum(r.terms.get(name, 0.0) * r.count for r in steps) / held for name in names},
        busy=tuple(sum(r.busy[i] for r in steps if len(r.busy) == ranks) for i in range(ranks)),
        outputs_age=sum(ages) / sums["distilled"] if ages and sums["distilled"] else None,
        branch=steps[-1].branch,
        **sums,
    )


def steps_before(record: Steps, end: int) -> Steps | None:
    """Its steps before step `end`, with that share of the sums; None if there are none."""
    if end <= record.first:
        return None
    kept = sum(at < end for at in record.at)
    count = min(end - record.first, record.count) if isinstance(record, ThinnedSteps) else kept
    share = count / record.count
    sums = {name: getattr(record, name) for name in Steps.SUMS}
    shares: dict[str, Any] = {
        n: round(v * share) if isinstance(v, int) else v * share for n, v in sums.items()
    }
    part = replace(
        record,
        losses=record.losses[:kept],
        busy=tuple(seconds * share for seconds in record.busy),
        **shares,
    )
    return replace(part, held=count, chosen=part.chosen[:kept]) if isinstance(part, ThinnedSteps) else part


def thinned(placed: Sequence[Placed], fences: Sequence[int], *, grain: int) -> tuple[list[Placed], int]:
    """Fewer records of the same steps, and how many steps one of the old ones holds at most now.

    The newest WHOLE losses stay as they are; of the others about as many are left. fences: sorted places
    that no record may reach across. grain: what this returned the last time, 1 at first.
    """
    first_whole, whole = len(placed), 0
    while first_whole and whole < WHOLE:
        first_whole -= 1
        whole += len(placed[first_whole][1].losses)
    old = list(placed[:first_whole])
    largest = sum(record.count for _, record in old)
    while _points(old) > WHOLE and grain < largest:
        grain *= 2
        old = _joined(old, fences, grain)
    return [*_joined(old, fences, grain), *placed[first_whole:]], grain


def _points(placed: Sequence[Placed]) -> int:
    return sum(len(record.losses) for _, record in placed)


def _joined(placed: Sequence[Placed], fences: Sequence[int], grain: int) -> list[Placed]:
    """Neighbours in one record each, which stands where the last of them stood."""
    joined: list[Placed] = []
    group: list[Steps] = []
    held, field, place = 0, -1, -1
    for at, record in placed:
        here = bisect_left(fences, at)
        fits = group and here == field and held + record.count <= grain
        if not (fits and (record.task, record.branch) == (group[-1].task, group[-1].branch)):
            if group:
                joined.append((place, merged(group)))
            group, held = [], 0
        group.append(record)
        held, field, place = held + record.count, here, at
    return [*joined, (place, merged(group))] if group else joined
