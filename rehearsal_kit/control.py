"""Decisions at a step boundary: rank 0 decides, all ranks vote, all of them apply a command or none does."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rehearsal_kit.arrivals import Watcher, with_digest
from rehearsal_kit.commands import Arrived, Command, SetAside, Watch, Wish, from_plain, to_plain
from rehearsal_kit.errors import RehearsalKitError
from rehearsal_kit.groups import Groups
from rehearsal_kit.run_folder import Ledger, RunFolder

Commit = Callable[[], None]
Prepare = Callable[[Command], Commit]
"""Checks a command and readies it, may raise, changes nothing; what it returns cannot fail."""


@dataclass(frozen=True)
class Decision:
    """A wish after the vote of all ranks."""

    wish: Wish
    refused: str
    """Why no rank applied it; empty when all did."""


class Control:
    """This rank's end of the control loop. Rank 0 has the mailbox, the watcher and the ledger."""

    def __init__(self, run: RunFolder, groups: Groups, mailbox: queue.SimpleQueue[str]) -> None:
        self._groups = groups
        self._mailbox = mailbox
        self._watcher = Watcher()
        self._effects = Ledger(run.effects, durable=True) if groups.rank == 0 else None

    def decide(self, step: int, prepare: Prepare) -> Iterator[Decision]:
        """What takes effect before step `step`, one after the other, the same on every rank.

        Each decision is on disk before rank 0 carries it out, and carried out before the next is prepared.
        """
        text = self._groups.broadcast(self._collect(step) if self._groups.rank == 0 else "")
        for plain in json.loads(text) if text else []:
            wish = Wish(plain.pop("number"), from_plain(plain))
            yield self._vote(step, wish, prepare)

    def set_aside(self, step: int, command: SetAside) -> None:
        """Record a scan that the ranks have agreed to set aside on their own."""
        self._record(step, Wish(0, command), "")

    def agree(self, trouble: str) -> str:
        """The first trouble of any rank, told to all; empty when none has any."""
        return next((text for text in self._groups.gather(trouble) if text), "")

    def close(self) -> None:
        """Close the ledger."""
        if self._effects is not None:
            self._effects.close()

    def _collect(self, step: int) -> str:
        wishes = []
        while not self._mailbox.empty():
            wishes.append(Wish.from_json(self._mailbox.get()))
        for wish in wishes:
            if isinstance(wish.command, Watch):
                self._watcher.watch(wish.command)
        wishes += [Wish(0, arrived) for arrived in self._watcher.poll()]
        return json.dumps([to_plain(_with_digest(wish, step)) for wish in wishes]) if wishes else ""

    def _vote(self, step: int, wish: Wish, prepare: Prepare) -> Decision:
        trouble: str = ""
        commit: Commit = _nothing
        try:
            commit = prepare(wish.command)
        except Exception as error:  # whatever one rank cannot do, none does, and the run goes on
            trouble = said(error, rank=self._groups.rank, step=step)
        refused = self.agree(trouble)
        if refused and isinstance(wish.command, Arrived):
            aside = SetAside(name=wish.command.name, path=wish.command.path, reason=refused)
            wish, refused, commit = Wish(wish.number, aside), "", prepare(aside)
        self._record(step, wish, refused)
        if not refused:
            commit()
        return Decision(wish, refused)

    def _record(self, step: int, wish: Wish, refused: str) -> None:
        if self._effects is not None:
            entry = {"branch": 0, "step": step, **to_plain(wish)}
            self._effects.append({**entry, "refused": refused} if refused else entry)


def _with_digest(wish: Wish, step: int) -> Wish:
    if not isinstance(wish.command, Arrived):
        return wish
    try:
        return Wish(wish.number, with_digest(wish.command))
    except OSError as error:
        reason = f"{wish.command.path} cannot be read: {error.strerror or error} (rank 0, before step {step})"
        return Wish(wish.number, SetAside(name=wish.command.name, path=wish.command.path, reason=reason))


def said(error: Exception, *, rank: int, step: int) -> str:
    """What an error says, and where; with its type where it is not one of ours, which say enough."""
    words = str(error) if isinstance(error, RehearsalKitError) else f"{type(error).__name__}: {error}"
    return f"{words} (rank {rank}, before step {step})"


def _nothing() -> None:
    """The commit of what could not be prepared."""
