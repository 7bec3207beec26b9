"""Recorded effects that are to take effect again, at their positions: after a restart, or in a replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from rehearsal_kit.errors import ReplayError

FACTS = ("TaskDone", "SetAside")
"""What the ranks found out between two decisions; as an answer to an arrival, a set-aside is a decision."""

Position = tuple[int, int]
"""Branch, and the number of the next step."""


class Script:
    """A queue of ledger entries. Its order is that in which they took effect, and nothing may be left out.

    ours: whether they stand in the ledger of the run that follows them, or in that of another one.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]] = (), *, ours: bool = True) -> None:
        self.ours = ours
        self._entries = deque(dict(entry) for entry in entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def due(self, position: Position) -> list[dict[str, Any]]:
        """The decisions that come next at this position, up to the next fact or another branch."""
        taken = []
        while self._entries and _at(self._entries[0]) == position and not _is_fact(self._entries[0]):
            taken.append(self._entries.popleft())
            if taken[-1]["kind"] == "RollBack":
                break
        self.require_ahead(position)
        return taken

    def fact(self, position: Position, kind: str, task: int) -> dict[str, Any] | None:
        """What was found out of a task at this position; None if that is not what comes next."""
        if not self._entries:
            return None
        entry = self._entries[0]
        same = _at(entry) == position and _is_fact(entry) and (entry["kind"], entry["task"]) == (kind, task)
        return self._entries.popleft() if same else None

    def require_ahead(self, position: Position) -> None:
        """ReplayError if something recorded for an earlier position did not come about."""
        if self._entries and _passed(_at(self._entries[0]), position):
            branch, step = _at(self._entries[0])
            raise ReplayError(
                f"the ledger has {_words(self._entries[0])} at step {step} of branch {branch}, the run is "
                f"at step {position[1]} of branch {position[0]} and it has not come about; code, data or "
                "settings are not those of the recorded run."
            )


def _at(entry: Mapping[str, Any]) -> Position:
    return int(entry["branch"]), int(entry["step"])


def _is_fact(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] in FACTS and entry.get("task") is not None


def _passed(due: Position, position: Position) -> bool:
    return due[0] < position[0] or (due[0] == position[0] and due[1] < position[1])


def _words(entry: Mapping[str, Any]) -> str:
    task = entry.get("task")
    return f"{entry['kind']}" + (f" of task {task}" if task is not None else "")
