"""Recorded effects that take effect again: at their positions, or on another branch as far as they can."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from rehearsal_kit.base.errors import ReplayError, SettingsError
from rehearsal_kit.record.commands import Command, Reorder, Skip
from rehearsal_kit.record.run_states import Recorded, recorded_as

Position = tuple[int, int]
"""Branch, and the number of the next step."""
Entry = dict[str, Any]
"""One line of the ledger of effects."""

AGAIN = "again"
"""Key in an entry for a decision that was recorded on a branch that was left, and was made again on another
one."""
LEAVES = ("RollBack", "BeginAgain")
"""Kinds of entries after which the run is at another position."""


class ReplayQueue:
    """A queue of ledger entries. Its order is that in which they took effect, and nothing may be left out.

    ours: whether they stand in the ledger of the run that follows them, or in that of another one.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]] = (), *, ours: bool = True) -> None:
        self.ours = ours
        self._entries = deque(dict(entry) for entry in entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def due(self, position: Position) -> list[Entry]:
        """The decisions that come next at this position, up to the next fact or another branch."""
        taken: list[Entry] = []
        while self._entries and at(self._entries[0]) == position and _is_decision(self._entries[0]):
            taken.append(self._entries.popleft())
            if taken[-1]["kind"] in LEAVES:
                break
        self.require_ahead(position)
        return taken

    def fact(self, position: Position, kind: str, task: int | None, *, between: bool = False) -> Entry | None:
        """What was found of a task, or of the run, at this position; None if that is not what comes next.

        between: whether it is what was found between two steps, or what was found of the step before.
        """
        found = self.next_fact(position, kind, task, between=between)
        return None if found is None else self._entries.popleft()

    def next_fact(
        self, position: Position, kind: str, task: int | None, *, between: bool = False
    ) -> Entry | None:
        """The same, and it stays what comes next."""
        if not self._entries:
            return None
        entry = self._entries[0]
        same = (
            at(entry) == position
            and not _is_decision(entry)
            and (entry["kind"], entry.get("task")) == (kind, task)
            and entry.get("between", False) == between
        )
        return entry if same else None

    def decides_at(self, position: Position) -> bool:
        """Whether what comes next is a decision at this position."""
        return bool(self._entries) and at(self._entries[0]) == position and _is_decision(self._entries[0])

    def set_asides(self, position: Position) -> list[Entry]:
        """The tasks that the ranks set aside on their own at this position, as far as these come next."""
        taken: list[Entry] = []
        while (
            self._entries
            and at(self._entries[0]) == position
            and self._entries[0]["kind"] == "SetAside"
            and not self._entries[0].get("between")
            and not _is_decision(self._entries[0])
        ):
            taken.append(self._entries.popleft())
        return taken

    def require_ahead(self, position: Position) -> None:
        """ReplayError if something recorded for an earlier position did not come about."""
        if self._entries and _passed(at(self._entries[0]), position):
            branch, step = at(self._entries[0])
            raise ReplayError(
                f"the ledger has {_words(self._entries[0])} at step {step} of branch {branch}, the run is "
                f"at step {position[1]} of branch {position[0]} and it has not come about; code, data or "
                "settings are not those of the recorded run."
            )

    def require_a_way(self, position: Position) -> None:
        """ReplayError if something is recorded that nothing leads to while the run is paused here."""
        if self._entries:
            raise ReplayError(
                f"the run is paused at step {position[1]} of branch {position[0]}, and nobody had it resumed "
                f"there when the ledger was written, which has {_words(self._entries[0])} at step "
                f"{at(self._entries[0])[1]}; code, data, settings or device are not those of the recorded "
                "run."
            )

    def require_no_more(self, position: Position) -> None:
        """ReplayError if something is recorded after the end of the run that nothing leads to."""
        if self._entries:
            raise ReplayError(
                f"the ledger has {_words(self._entries[0])} after the run had ended at step {position[1]} of "
                f"branch {position[0]}; it was not reopened before that. Was the ledger changed?"
            )


class Outstanding:
    """Decisions of a branch that was left, to be made again in their order on the one in its place."""

    def __init__(self, entries: Iterable[Mapping[str, Any]] = (), *, renumbered: bool = False) -> None:
        self.renumbered = renumbered
        """Whether tasks that come now have other numbers than they had."""
        self._entries = deque(dict(entry) for entry in entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def due(self, step: int, *, all_of_them: bool, next_one: bool) -> list[Entry]:
        """Those whose step has come, with `AGAIN`.

        all_of_them: whether somebody wishes for something new, which comes after them. next_one: whether no
        step comes any more that could bring the next of them.
        """
        taken: list[Entry] = []
        while self._entries:
            entry = self._entries[0]
            if not (all_of_them or next_one or entry["step"] <= step or is_arrival(entry)):
                break
            next_one = False
            taken.append({**self._entries.popleft(), AGAIN: True})
            if taken[-1]["kind"] in LEAVES:
                break
        return taken

    def require_sure(self, command: Command) -> None:
        """SettingsError if nobody can tell any more which tasks a decision that is made again means."""
        if self.renumbered and isinstance(command, Skip | Reorder):
            raise SettingsError(
                "it names tasks by numbers that were given by an order or an arrival that could not be taken "
                "up again as it was; say it again with the numbers of now."
            )


def renumbers(kind: str, entry: Mapping[str, Any]) -> bool:
    """Whether tasks may have other numbers since a decision of this kind was made again like this."""
    return kind == "Reorder" or (kind == "Arrived" and (entry["kind"] != kind or "refused" in entry))


def kind_of(entry: Mapping[str, Any]) -> Recorded:
    """What an entry is for ranks that begin again."""
    return recorded_as(entry["kind"], task=entry.get("task"), number=entry["number"])


def is_arrival(entry: Mapping[str, Any]) -> bool:
    """Whether the world has brought it."""
    return kind_of(entry) is Recorded.ARRIVAL


def _is_decision(entry: Mapping[str, Any]) -> bool:
    # That ranks begin again is found out by them, but takes effect as a decision does: before a step.
    return entry["kind"] == "BeginAgain" or kind_of(entry) is not Recorded.FACT


def at(entry: Mapping[str, Any]) -> Position:
    """Where an entry took effect."""
    return int(entry["branch"]), int(entry["step"])


def _passed(due: Position, position: Position) -> bool:
    return due[0] < position[0] or (due[0] == position[0] and due[1] < position[1])


def _words(entry: Mapping[str, Any]) -> str:
    task = entry.get("task")
    return f"{entry['kind']}" + (f" of task {task}" if task is not None else "")
