"""The states of a run as data: what leads from one to the next, and what outlives which event.

The code decides by these tables, but for the numbers of a branch that begins anew: the ranks agree on them
and `BeginAgain` carries them; the tests hold that to its column. Whoever adds a command or a field adds its
line here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

OUTCOMES = ("finished", "stopped")
"""How a run may end by itself or by a person's wish; stands in its checkpoints, and only Reopen leads on."""
INTERRUPTED = "interrupted"
"""How a set of ranks may end besides: its processes were closed. No state of the run: it is in no checkpoint
and no ledger, and the run goes on wherever it is started again."""
REGROUPED = "regrouped"
"""How it may end as well: between two tasks, so that more ranks go on. No state of the run either."""
ENDED = (*OUTCOMES, INTERRUPTED, "failed")
"""States after which a session has nothing to wait for."""


@dataclass(frozen=True)
class Change:
    """What a command makes of the state of a run; None leaves that part as it is."""

    outcome: str | None = None
    paused: bool | None = None


CHANGES: Mapping[str, Change] = {
    "Pause": Change(paused=True),
    "Resume": Change(paused=False),
    "Stop": Change(outcome="stopped"),
    "Finished": Change(outcome="finished"),
    "Reopen": Change(outcome=""),
}
"""Changes by kind of command; all others change no state. They take effect in the order in which they are
recorded, so that of a Stop and a Reopen at the same step the later one counts."""


class Event(Enum):
    """What may happen to a run between two steps, besides commands."""

    RESTART = "ranks begin again from a checkpoint: after a failure, or by resume"
    BEGIN_AGAIN = "the same as another branch, on other ranks or without data that are gone"
    ROLL_BACK = "a person goes back to a checkpoint"


class Fate(Enum):
    """What such an event makes of one part of what a run is."""

    THERE = "as it was in the checkpoint"
    NOW = "as it is"
    NEW = "a number that was never used"
    CLEARED = "none"


_THERE = dict.fromkeys(Event, Fate.THERE)
_OF_THE_WORLD = {**_THERE, Event.ROLL_BACK: Fate.NOW}

FATES: Mapping[str, Mapping[Event, Fate]] = {
    # What was learned
    "step": _THERE,
    "begun": _THERE,
    "spoilt": _THERE,
    "live_settings": _THERE,
    # What a person or the world has said: nobody rolls that back
    "paused": _OF_THE_WORLD,
    "finishing": _OF_THE_WORLD,
    "command": _OF_THE_WORLD,
    # What cannot be said any more once there is something to train again
    "trouble": {**_THERE, Event.ROLL_BACK: Fate.CLEARED},
    "outcome": {**_THERE, Event.ROLL_BACK: Fate.CLEARED},
    "kept": {**_THERE, Event.ROLL_BACK: Fate.CLEARED},
    # Numbers that are given once
    "branch": {**_THERE, Event.BEGIN_AGAIN: Fate.NEW, Event.ROLL_BACK: Fate.NEW},
    "branches": {**_THERE, Event.BEGIN_AGAIN: Fate.NEW, Event.ROLL_BACK: Fate.NEW},
    "checkpoints": {**_THERE, Event.BEGIN_AGAIN: Fate.NEW, Event.ROLL_BACK: Fate.NOW},
}
"""Fates by field of `RunState`, then by event. A restart then applies again what was recorded after the
checkpoint, at its steps; a replay does so from the very beginning. Of ranks that begin again each entry is
what `Recorded` says."""


class Recorded(Enum):
    """What an entry of the ledger of effects is, for ranks that begin again."""

    FACT = "found out by the ranks: binds only as many ranks, on the same data"
    OF_THE_CLOCK = "decided by rank 0 because of the time or the disk: it decides anew"
    ARRIVAL = "brought by the world: decided again at once, in the same order"
    DECISION = "a person's: decided again at its step or the first after it, or refused with the reason"


def recorded_as(kind: str, *, task: int | None, number: int) -> Recorded:
    """What an entry of this kind is. task: its number, where the entry names one; number: of its wish."""
    facts = ("TaskDone", "StartedOver", "Finished", "BeginAgain")
    if kind in facts or (kind == "SetAside" and task is not None):
        return Recorded.FACT
    if kind == "TakeCheckpoint" and not number:
        return Recorded.OF_THE_CLOCK
    if kind in ("Arrived", "SetAside", "Watch"):
        return Recorded.ARRIVAL
    return Recorded.DECISION
