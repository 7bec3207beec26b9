"""Tasks of a run that were set aside or could not be evaluated, and why."""

from __future__ import annotations

from rehearsal_kit.record.records import UNTRAINED, TaskSetAside, Unevaluated
from rehearsal_kit.record.timeline import Timeline

SAID = 3
"""Tasks that were set aside that a message names."""


def left_open(timeline: Timeline, split: str) -> dict[int, str]:
    """Reasons, by task, why it could not be evaluated when last tried; not those that could be since."""
    errors = timeline.scores(lambda scores: scores.last(split))
    return {
        record.task: record.reason
        for record in timeline.records(Unevaluated)
        if record.split == split and record.after > errors.get(record.task, UNTRAINED - 1)
    }


def left_out(timeline: Timeline) -> str:
    """Which tasks were set aside, and why, of the first ones; empty if none was."""
    records = [*timeline.set_aside().values(), *unnumbered(timeline)]
    if not records:
        return ""
    first = "; ".join(f"{record.name}: {record.reason}" for record in records[:SAID])
    more = f"; and {len(records) - SAID} more" if len(records) > SAID else ""
    return f"{len(records)} task{'s were' if len(records) > 1 else ' was'} set aside: {first}{more}."


def unnumbered(timeline: Timeline) -> list[TaskSetAside]:
    """Tasks that were set aside when they arrived, before they had a number.

    Not those that had one and are no longer set aside: another branch trains them after all.
    """
    known = set(timeline.set_aside().values())  # of runs of earlier versions, whose records have no number
    return [
        record for record in timeline.records(TaskSetAside) if record.task is None and record not in known
    ]
