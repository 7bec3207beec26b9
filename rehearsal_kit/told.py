"""What a run has told already: a restarted one repeats steps, but its curves must not show them twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rehearsal_kit.telemetry import (
    CheckpointFailed,
    CheckpointKept,
    Ended,
    Joined,
    NotKept,
    Record,
    Restored,
    StateChanged,
    to_plain,
)

OF_THE_MOMENT = (Joined, Ended, StateChanged, Restored, CheckpointKept, CheckpointFailed, NotKept)
"""Told again when they happen again: they are about ranks and disks, not about what was learned."""
OF_THE_CLOCK = frozenset({"time", "seconds", "waited", "hidden"})


class Told:
    """Knows a record again by all that does not depend on the clock: steps that are repeated are the same."""

    def __init__(self, plain_records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._known: set[str] = set()
        self._steps: dict[int, int] = {}
        for plain in plain_records:
            try:
                self._take(plain)
            except (KeyError, TypeError):  # damaged: told again, if it comes again
                continue

    def _take(self, plain: Mapping[str, Any]) -> None:
        if plain["record"] == "Steps":
            branch, end = plain["branch"], plain["first"] + len(plain["losses"])
            self._steps[branch] = max(self._steps.get(branch, 0), end)
        else:
            self._known.add(_identity(plain))

    def has(self, record: Record) -> bool:
        """Whether the same was told before."""
        return not isinstance(record, OF_THE_MOMENT) and _identity(to_plain(record)) in self._known

    def has_step(self, branch: int, step: int) -> bool:
        """Whether the losses of this step were told before."""
        return step < self._steps.get(branch, 0)


def _identity(plain: Mapping[str, Any]) -> str:
    same = {name: value for name, value in plain.items() if name not in OF_THE_CLOCK}
    same = {name: tuple(value) if isinstance(value, list) else value for name, value in same.items()}
    return repr(sorted(same.items()))
