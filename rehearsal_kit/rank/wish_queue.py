"""What rank 0 is to decide on next: wishes of people, in the order in which they came, and arriving files."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.data.folder_watch import FolderWatch
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.rank.mailbox import Mailbox
from rehearsal_kit.record.commands import (
    OF_RANKS,
    Arrived,
    FinishStream,
    Note,
    Reopen,
    Reorder,
    SetAside,
    Skip,
    Watch,
    Wish,
)
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.replay_queue import Position
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.task_fields import TaskFields

IN_ORDER = (Arrived, Watch, FinishStream, Skip, Reorder)
"""Wishes that go through the reader: those whose files it reads, and those that count or name tasks, which
must not overtake them. All others take effect meanwhile."""


class WishQueue:
    """Fed by a mailbox, by the ledger of wishes, and by the reader that watches folders and hashes files."""

    def __init__(self, run: RunFolder, mailbox: Mailbox, *, reading: ScanReading | None = None) -> None:
        self._run = run
        self._mailbox = mailbox
        self._folder_watch = FolderWatch(reading=reading)
        self._waiting: deque[Wish] = deque()
        self._received: set[tuple[str, int]] = set()
        """Holders and numbers of wishes; not all before the newest are answered, as some wait for files."""

    def catch_up(self) -> None:
        """What this run's ledgers say: wishes not answered yet, files that have arrived, patterns watched."""
        run = self._run
        for entry in read_ledger(run.effects):
            self._received.add((entry.get("holder", ""), entry["number"]))
            if entry["kind"] == "SetAside" and entry.get("task") is None:
                path, digest = run.find(entry["path"]), entry.get("digest", "")
                self._folder_watch.set_aside(Arrived(name=entry["name"], path=path, digest=digest))
            elif entry["kind"] in ("Arrived", "SetAside"):
                self._folder_watch.know(run.find(entry["path"]))
            elif entry["kind"] == "Watch" and "refused" not in entry:
                fields = entry.get("fields")
                self._folder_watch.watch(
                    entry["pattern"],
                    known=entry["known"],
                    fields=None if fields is None else TaskFields(**fields),
                )
        # Nobody else's: whoever never steered this run has nothing to say in it, whatever the file holds.
        held = {entry.get("holder") for entry in read_ledger(run.generations)}
        for entry in read_ledger(run.wishes):
            entry.pop("time", None)
            if entry.get("holder") and entry["holder"] in held:
                self._receive(_wish(json.dumps(entry)))

    def receive(self) -> None:
        """Take what has come into the mailbox."""
        while not self._mailbox.empty():
            self._receive(_wish(self._mailbox.get()))

    @property
    def asks_for_more(self) -> bool:
        """Whether anything waits besides that the run be reopened."""
        return any(not isinstance(wish.command, Reopen) for wish in self._waiting)

    def due(self, position: Position) -> Iterator[Wish]:
        """Everything that can be decided now, in order; the reader goes on with the rest."""
        while self._waiting:
            wish = self._waiting.popleft()
            if isinstance(wish.command, IN_ORDER):
                self._ask(wish)
                continue
            yield from self._came(position)
            yield wish
        yield from self._came(position)

    def set_aside(self, arrived: Arrived) -> None:
        """Take this file for a new arrival only once it has changed."""
        self._folder_watch.set_aside(replace(arrived, path=self._run.find(arrived.path)))

    def close(self) -> None:
        """End the reader."""
        self._folder_watch.close()

    def _receive(self, wish: Wish) -> None:
        # A wish may come twice, from the ledger and from the mailbox, after ranks were started anew.
        if not wish.number or (wish.holder, wish.number) not in self._received:
            self._received.add((wish.holder, wish.number))
            self._waiting.append(wish)

    def _ask(self, wish: Wish) -> None:
        """Have the reader complete a wish; it is given whole paths."""
        command = wish.command
        if isinstance(command, Arrived):
            command = replace(command, path=self._run.find(command.path))
        self._folder_watch.ask(replace(wish, command=command))

    def _came(self, position: Position) -> Iterator[Wish]:
        """What the reader has ready; files in the run folder are written down by their place in there."""
        for wish in self._folder_watch.poll():
            command = _placed(wish, position).command
            if isinstance(command, Arrived | SetAside):
                command = replace(command, path=self._run.inside(command.path))
            yield replace(wish, command=command)


def _wish(text: str) -> Wish:
    """A wish that was written down or sent; a note in its place if a kernel has let a wrong one pass."""
    try:
        wish = Wish.from_json(text)
        if isinstance(wish.command, OF_RANKS):
            kind = type(wish.command).__name__
            raise SettingsError(f"{kind} is found by the ranks themselves; nobody can wish for it.")
        return wish
    except (SettingsError, ValueError) as error:
        plain = json.loads(text)
        number = plain.get("number") if isinstance(plain.get("number"), int) else 0
        return Wish(number, Note(text=f"refused by rank 0: {error}"), str(plain.get("holder", "")))


def _placed(wish: Wish, position: Position) -> Wish:
    """A file that the reader sets aside is so at this position, as far as rank 0 can see."""
    command = wish.command
    if not isinstance(command, SetAside):
        return wish
    reason = f"{command.reason} (rank 0, before step {position[1]})"
    return replace(wish, command=replace(command, reason=reason))
