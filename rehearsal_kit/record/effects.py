"""What a ledger of effects says: what holds, and what was left behind where ranks began again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.replay_queue import AGAIN, Entry, Position, at, is_arrival, kind_of, renumbers
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.run_states import CHANGES, Recorded


@dataclass(frozen=True)
class Effects:
    """What a ledger of effects says: what holds, and what was left behind when ranks began again."""

    entries: Sequence[Entry] = ()
    """Those that hold, in their order."""
    numbers: Mapping[int, int] = field(default_factory=dict)
    """Place among the entries of what comes after each checkpoint that holds, by number of the checkpoint."""
    outstanding: Sequence[Entry] = ()
    """Decisions of branches that were left, which were not made again yet."""
    renumbered: bool = False
    """Whether tasks have other numbers than they had when these were made."""
    checkpoints: int = 0
    """How many were taken, those left behind included."""
    branches: int = 1
    last: Position = (0, 0)
    """Where the newest entry took effect."""

    def place_of(self, checkpoint: int) -> Position:
        """Where a checkpoint that holds was taken; the very beginning for 0."""
        return at(self.entries[self.numbers[checkpoint] - 1]) if checkpoint else (0, 0)

    def after(self, checkpoint: int) -> list[Entry]:
        """What holds and took effect after a checkpoint; 0: all that holds."""
        return list(self.entries[self.numbers.get(checkpoint, 0) :])


def effects_of(ledger: Iterable[Entry]) -> Effects:
    """Go through a ledger of effects from its beginning."""
    held: list[Entry] = []
    numbers: dict[int, int] = {}
    outstanding: list[Entry] = []
    taken, branches, last, renumbered = 0, 1, (0, 0), False
    for entry in ledger:
        last, branches = at(entry), max(branches, entry["branch"] + 1)
        if entry["kind"] == "BeginAgain":
            cut = numbers.get(entry["checkpoint"], 0)
            outstanding = left_outstanding(held[cut:], outstanding)
            held, branches = held[:cut], max(branches, entry["begins"] + 1)
            numbers = {number: place for number, place in numbers.items() if place <= cut}
        elif entry.get(AGAIN):
            renumbered |= any(renumbers(before["kind"], entry) for before in outstanding[:1])
            outstanding = outstanding[1:]
        renumbered &= bool(outstanding)
        held.append(entry)
        if entry["kind"] == "RollBack" and "refused" not in entry:
            branches += 1
        if entry["kind"] == "TakeCheckpoint" and "refused" not in entry:
            taken += 1
            numbers[taken] = len(held)
    return Effects(held, numbers, outstanding, renumbered, taken, branches, last)


def left_outstanding(left: Iterable[Entry], before: Iterable[Entry]) -> list[Entry]:
    """What is to be decided again of the entries that are left, and of those outstanding before.

    Arrivals come first: nobody has to wait for a file that is there. But none overtakes a Skip: the same file
    may have been submitted again after that, and is no new task before.
    """
    again = [
        {name: value for name, value in entry.items() if name != AGAIN}
        for entry in left
        if "refused" not in entry and kind_of(entry) in (Recorded.ARRIVAL, Recorded.DECISION)
    ]
    entries = [*again, *before]
    skipped = itertools.accumulate((entry["kind"] == "Skip" for entry in entries), initial=0)
    ordered = sorted(zip(skipped, entries, strict=False), key=lambda pair: (pair[0], not is_arrival(pair[1])))
    return [entry for _, entry in ordered]


def segments(ledger: Iterable[Entry]) -> list[list[Entry]]:
    """A ledger of effects, cut where ranks began again: each part was made by one number of ranks."""
    parts: list[list[Entry]] = [[]]
    for entry in ledger:
        if entry["kind"] == "BeginAgain":
            parts.append([])
        parts[-1].append(entry)
    return [part for part in parts if part]


def has_ended(run: RunFolder) -> bool:
    """Whether a run was finished or stopped, or will be once its last wishes are heard, and not reopened."""
    outcome, effects = "", read_ledger(run.effects)
    for entry in (*effects, *unheard(run, effects)):
        outcome = outcome if "refused" in entry else _outcome(entry["kind"], outcome)
    return bool(outcome)


def unheard(run: RunFolder, effects: Iterable[Entry]) -> list[Entry]:
    """Wishes that were written down and that no rank has answered, in order. effects: the ledger of ranks."""
    answered = {(entry.get("holder", ""), entry["number"]) for entry in effects}
    wishes = read_ledger(run.wishes)
    return [wish for wish in wishes if (wish.get("holder", ""), wish["number"]) not in answered]


def _outcome(kind: str, before: str) -> str:
    if kind == "RollBack":
        return ""
    change = CHANGES.get(kind)
    return before if change is None or change.outcome is None else change.outcome
