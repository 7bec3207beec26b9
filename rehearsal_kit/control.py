"""Decisions at a step boundary: rank 0 decides, all ranks vote, all of them apply a command or none does."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from rehearsal_kit.commands import (
    Arrived,
    Command,
    FinishStream,
    Note,
    Reorder,
    RollBack,
    SetAside,
    Skip,
    TakeCheckpoint,
    TaskDone,
    Watch,
    Wish,
    from_plain,
    to_plain,
)
from rehearsal_kit.errors import AlreadyTaskError, RankError, RehearsalKitError, ReplayError, SettingsError
from rehearsal_kit.groups import Groups
from rehearsal_kit.run_folder import Ledger, RunFolder, read_ledger
from rehearsal_kit.script import Position, Script
from rehearsal_kit.watcher import Watcher

IN_ORDER = (Arrived, Watch, FinishStream, Skip, Reorder)
"""Wishes that go through the reader: those whose files it reads, and those that count or name tasks, which
must not overtake them. All others take effect meanwhile."""


class Mailbox(Protocol):
    """Where wishes for rank 0 arrive, as JSON; looked into at every step boundary."""

    def empty(self) -> bool:
        """Whether nothing lies there now."""

    def get(self) -> str:
        """Take out the next."""


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
    """This rank's end of the control loop. Rank 0 has the mailbox, the watcher, the ledger and the script.

    script: recorded effects that come before anything new.
    """

    def __init__(
        self, run: RunFolder, groups: Groups, mailbox: Mailbox, *, script: Script | None = None
    ) -> None:
        self._groups = groups
        self._mailbox = mailbox
        self._watcher = Watcher()
        self._script = script or Script()
        self._waiting: deque[Wish] = deque()
        self._received: set[int] = set()
        """Numbers of wishes; not all before the newest are answered, as some wait for their files."""
        self.decided = 0
        """Step boundaries that were passed, waiting included."""
        self.given_up = False
        """Whether another generation of ranks takes the place of this one; set by another thread."""
        self._effects: Ledger | None = None
        if groups.rank == 0:
            self._catch_up(run)
            self._effects = Ledger(run.effects, durable=True)

    def decide(self, position: Position, prepare: Prepare, *, due: bool = False) -> Iterator[Decision]:
        """What takes effect at this position, one after the other, the same on every rank.

        Each decision is on disk before rank 0 carries it out, and carried out before the next is prepared.
        due: whether rank 0 finds that it is time for a checkpoint.
        """
        self.decided += 1
        text = self._groups.broadcast(self._collect(position, due=due) if self._groups.rank == 0 else "")
        if self.given_up:  # after the broadcast: what a revived rank 0 has just decided must not pass
            raise RankError("this generation of ranks was given up; another one takes its place.")
        for plain in json.loads(text) if text else []:
            recorded, refused = plain.pop("recorded", False), plain.pop("refused", "")
            wish = Wish(plain.pop("number"), from_plain(plain))
            if recorded:
                yield self._as_before(position, Decision(wish, refused), prepare)
            else:
                yield self._vote(position, wish, prepare)

    def own(self, position: Position, wish: Wish, prepare: Prepare) -> Decision:
        """Apply what all ranks have decided by themselves, each of them calling this at the same position."""
        return self._vote(position, wish, prepare)

    def set_aside(self, position: Position, command: SetAside) -> None:
        """Record a task that the ranks have agreed to set aside on their own."""
        assert command.task is not None  # noqa: S101 - for the type checker; it was begun
        self._fact(position, command, command.task)

    def task_done(self, position: Position, command: TaskDone) -> None:
        """Record the end of a task; ReplayError on rank 0 if another was recorded at this position."""
        self._fact(position, command, command.task)

    def recorded_reason(self, position: Position, task: int) -> str:
        """Why a task was set aside at this position before; empty if it was not. The same on every rank."""
        reason = ""
        if self._groups.rank == 0 and (entry := self._script.fact(position, "SetAside", task)):
            reason = entry["reason"]
            self._again(entry)
        return self._groups.broadcast(reason)

    def exhausted(self) -> bool:
        """Whether no recorded effect is left to come; the same on every rank."""
        return not self._groups.broadcast("more" if self._script else "")

    def agree(self, trouble: str) -> str:
        """The first trouble of any rank, told to all; empty when none has any."""
        return next((text for text in self._groups.gather(trouble) if text), "")

    def close(self) -> None:
        """End the reader and close the ledger."""
        self._watcher.close()
        if self._effects is not None:
            self._effects.close()

    # Rank 0 ---------------------------------------------------------------------------------------------

    def _catch_up(self, run: RunFolder) -> None:
        """What this run's ledgers say: wishes not answered yet, files that have arrived, patterns watched."""
        for entry in read_ledger(run.effects):
            self._received.add(entry["number"])
            if entry["kind"] == "SetAside" and entry.get("task") is None:
                self._watcher.set_aside(
                    Arrived(name=entry["name"], path=entry["path"], digest=entry.get("digest", ""))
                )
            elif entry["kind"] in ("Arrived", "SetAside"):
                self._watcher.know(entry["path"])
            elif entry["kind"] == "Watch" and "refused" not in entry:
                self._watcher.watch(entry["pattern"], known=entry["known"])
        for entry in read_ledger(run.wishes):
            entry.pop("time", None)
            self._receive(_wish(json.dumps(entry)))

    def _receive(self, wish: Wish) -> None:
        # A wish may come twice, from the ledger and from the mailbox, after ranks were started anew.
        if not wish.number or wish.number not in self._received:
            self._received.add(wish.number)
            self._waiting.append(wish)

    def _collect(self, position: Position, *, due: bool) -> str:
        while not self._mailbox.empty():
            self._receive(_wish(self._mailbox.get()))
        if self._script:
            again = [_as_recorded(entry) for entry in self._script.due(position)]
            return json.dumps(again) if again else ""
        wishes = [Wish(0, TakeCheckpoint())] if due else []
        while self._waiting:
            wish = self._waiting.popleft()
            if isinstance(wish.command, IN_ORDER):
                self._watcher.ask(wish)
                continue
            wishes += self._watcher.poll()
            if isinstance(wish.command, RollBack):  # whatever the run is now stays within reach
                wishes += [Wish(0, TakeCheckpoint(spare=wish.command.checkpoint)), wish]
                break  # what comes after belongs to another branch
            wishes.append(wish)
        else:
            wishes += self._watcher.poll()
        return json.dumps([to_plain(wish) for wish in wishes]) if wishes else ""

    # Votes ----------------------------------------------------------------------------------------------

    def _vote(self, position: Position, wish: Wish, prepare: Prepare) -> Decision:
        command = wish.command
        commit, refused, twice = self._prepared(position, command, prepare)
        if refused and isinstance(command, Arrived) and not twice:
            aside = SetAside(name=command.name, path=command.path, reason=refused, digest=command.digest)
            wish, refused, commit = Wish(wish.number, aside), "", prepare(aside)
            if self._groups.rank == 0:
                self._watcher.set_aside(command)
        self._record(position, wish, refused)
        if not refused:
            commit()
        return Decision(wish, refused)

    def _as_before(self, position: Position, before: Decision, prepare: Prepare) -> Decision:
        """Apply what was applied and refuse what was refused; ReplayError where that cannot be."""
        command = before.wish.command
        commit: Commit = _nothing
        if not before.refused:
            commit, trouble, _ = self._prepared(position, command, prepare)
            if trouble:
                raise ReplayError(
                    f"{type(command).__name__} took effect at step {position[1]} of branch {position[0]} "
                    f"when it was recorded, but now: {trouble}"
                )
        self._again(_entry(position, before.wish, before.refused))
        commit()
        return before

    def _prepared(self, position: Position, command: Command, prepare: Prepare) -> tuple[Commit, str, bool]:
        """How to carry out a command, why it cannot be, and whether that is because it is a task already."""
        trouble: str = ""
        commit: Commit = _nothing
        twice = False
        try:
            commit = prepare(command)
        except Exception as error:  # whatever one rank cannot do, none does, and the run goes on
            trouble = said(error, rank=self._groups.rank, step=position[1])
            twice = isinstance(error, AlreadyTaskError)
        reason = self.agree(trouble)
        return commit, reason, bool(reason) and bool(self.agree("twice" if twice else ""))

    def _fact(self, position: Position, command: SetAside | TaskDone, task: int) -> None:
        if self._effects is None:
            return
        entry = _entry(position, Wish(0, command), "")
        if not self._script:
            self._effects.append(entry)
            return
        recorded = self._script.fact(position, entry["kind"], task)
        if recorded is None or (not self._script.ours and recorded != entry):
            raise ReplayError(
                f"at step {position[1]} of branch {position[0]} the run has {entry}, the ledger "
                f"{recorded or 'nothing of the kind'}; code, data or settings are not those of the recorded "
                "run."
            )
        self._again(entry)

    def _record(self, position: Position, wish: Wish, refused: str) -> None:
        if self._effects is not None:
            self._effects.append(_entry(position, wish, refused))

    def _again(self, entry: dict[str, Any]) -> None:
        """Write down what took effect again, unless it stands in this ledger already."""
        if self._effects is not None and not self._script.ours:
            self._effects.append(entry)


def _wish(text: str) -> Wish:
    """A wish that was written down or sent; a note in its place if a kernel has let a wrong one pass."""
    try:
        return Wish.from_json(text)
    except (SettingsError, ValueError) as error:
        number = json.loads(text).get("number")
        return Wish(number if isinstance(number, int) else 0, Note(text=f"refused by rank 0: {error}"))


def said(error: Exception, *, rank: int, step: int) -> str:
    """What an error says, and where; with its type where it is not one of ours, which say enough."""
    words = str(error) if isinstance(error, RehearsalKitError) else f"{type(error).__name__}: {error}"
    return f"{words} (rank {rank}, before step {step})"


def _entry(position: Position, wish: Wish, refused: str) -> dict[str, Any]:
    entry = {"branch": position[0], "step": position[1], **to_plain(wish)}
    return {**entry, "refused": refused} if refused else entry


def _as_recorded(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name not in ("branch", "step")}
    return {**kept, "recorded": True}


def _nothing() -> None:
    """The commit of what could not be prepared."""
