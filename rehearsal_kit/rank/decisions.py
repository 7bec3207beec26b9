"""Decisions at a step boundary: rank 0 decides, all ranks vote, all of them apply a command or none does.

    rank 0        recorded effects, else: wishes of people, arrivals --> what is to be decided at this step
                       | broadcast
    every rank    prepare (checks, reads, changes nothing) --> vote: can everybody?
                       |                                        | no: refused, with the first reason
    rank 0        on disk, in the ledger of effects             |
    every rank    commit (cannot fail) ------------------------ acknowledge, with the step

What took effect before, for ranks that begin again and in a replay, comes at its step and before anything
new; where it cannot be, a replay ends, and a run goes on from its checkpoint as another branch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rehearsal_kit.base.errors import (
    AlreadyTaskError,
    OtherRankError,
    RankError,
    ReplayError,
    said_before,
)
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.data.scans.reading import ScanReading
from rehearsal_kit.rank.mailbox import Mailbox
from rehearsal_kit.rank.wish_queue import WishQueue
from rehearsal_kit.record.commands import (
    Arrived,
    Command,
    Finished,
    SetAside,
    StartedOver,
    TakeCheckpoint,
    TaskDone,
    Wish,
    to_plain,
    wish_of,
)
from rehearsal_kit.record.ledger import Ledger
from rehearsal_kit.record.replay_queue import AGAIN, Entry, Outstanding, Position, ReplayQueue, renumbers
from rehearsal_kit.record.run_folder import RunFolder

Commit = Callable[[], None]
Prepare = Callable[[Command], Commit]
"""Checks a command and readies it, may raise, changes nothing; what it returns cannot fail."""


@dataclass(frozen=True)
class Decision:
    """A wish after the vote of all ranks."""

    wish: Wish
    refused: str = ""
    """Why no rank applied it; empty when all did."""
    again: bool = False
    """Whether it had taken effect before, on a branch that was left when ranks began again."""


class Decisions:
    """This rank's end of the control loop; rank 0 has mailbox, folder watch, ledger and replay queue."""

    def __init__(
        self,
        run: RunFolder,
        groups: ProcessGroups,
        mailbox: Mailbox,
        *,
        reading: ScanReading | None = None,
    ) -> None:
        self._groups = groups
        self._wish_queue = WishQueue(run, mailbox, reading=reading)
        self._replay_queue = ReplayQueue()
        self._outstanding = Outstanding()
        self._otherwise: Entry | None = None
        self.decided = 0
        """Step boundaries that were passed, waiting included."""
        self.given_up = False
        """Whether another generation of ranks takes the place of this one; set by another thread."""
        self.closing = ""
        """How rank 0 is to have all ranks end before the next step, while the run goes on; empty if it is
        not to. INTERRUPTED is set by another thread, REGROUPED by the loop."""
        self.interrupted = ""
        """How all ranks end here, as `closing` said; the same on every rank."""
        self.follows = False
        """Whether recorded effects are still to come, as of the last decision; the same on every rank."""
        self.repeating = False
        """Whether what is being prepared took effect before, when it was recorded."""
        self.just_read = False
        """Whether rank 0 has read the file of the arrival that is being prepared a moment ago."""
        self._effects: Ledger | None = None
        if groups.rank == 0:
            self._wish_queue.catch_up()
            self._effects = Ledger(run.effects, durable=True)

    def follow(
        self, replay_queue: ReplayQueue, outstanding: Outstanding, *, otherwise: Entry | None = None
    ) -> None:
        """Recorded effects come before anything new; to be called before the first decision.

        outstanding: decisions of a branch that was left, to be made again once the replay queue is empty.
        otherwise: what is recorded where what the replay queue holds cannot come about, so that the next
        generation of ranks goes another way. All are empty on ranks other than 0.
        """
        self._replay_queue, self._outstanding, self._otherwise = replay_queue, outstanding, otherwise

    def decide(
        self,
        position: Position,
        prepare: Prepare,
        *,
        settle: Commit,
        due: bool = False,
        idle: bool = False,
        paused: bool = False,
    ) -> Iterator[Decision]:
        """What takes effect at this position, one after the other, the same on every rank.

        Each decision is on disk before rank 0 carries it out, and carried out before the next is prepared.
        settle: is called before anything takes effect, on all ranks, if something does; not without need.
        due: whether rank 0 finds that it is time for a checkpoint. idle: whether no step comes next; paused:
        none before somebody resumes the run.
        """
        self.decided += 1
        found = {}
        if self._groups.rank == 0:
            found = self._collect(position, due=due, idle=idle or paused, paused=paused)
        text = self._groups.broadcast(json.dumps(found) if found else "")
        if self.given_up:  # after the broadcast: what a revived rank 0 has just decided must not pass
            raise OtherRankError("this generation of ranks was given up; another one takes its place.")
        found = json.loads(text) if text else {}
        self.interrupted, self.follows = found.get("interrupted", ""), found.get("follows", False)
        decided = found.get("decided", [])
        if decided or self.interrupted:
            settle()
        for plain in decided:
            recorded, refused = plain.pop("recorded", False), plain.pop("refused", "")
            again = plain.pop(AGAIN, False)
            decision = Decision(wish_of(plain), refused, again)
            if recorded:
                yield self._as_before(position, decision, prepare)
            else:
                yield self._vote(position, decision, prepare)

    def own(self, position: Position, wish: Wish, prepare: Prepare) -> Decision:
        """Apply what all ranks have decided by themselves, each of them calling this at the same position."""
        return self._vote(position, Decision(wish), prepare)

    def set_aside(self, position: Position, command: SetAside) -> None:
        """Record a task that the ranks have agreed to set aside on their own."""
        self._fact(position, command)

    def task_done(self, position: Position, command: TaskDone) -> None:
        """Record the end of a task; ReplayError on rank 0 if another was recorded at this position."""
        self._fact(position, command)

    def started_over(self, position: Position, command: StartedOver) -> None:
        """Record that a task goes back to where it began, and the run waits for a person."""
        # Versions up to November 2026 did not write it down, only what the person decided then.
        if not self._replay_queue.decides_at(position):
            self._fact(position, command)

    def finished(self, position: Position) -> None:
        """Record that all tasks are trained and no more will come."""
        self._fact(position, Finished())

    def recorded_set_aside(self, position: Position, task: int, *, between: bool = False) -> str:
        """Why this task was given up at this position before; empty if it was not. The same on every rank.

        between: whether that was found between two steps.
        """
        if not self.follows:
            return ""
        entry = None
        if self._groups.rank == 0:
            entry = self._replay_queue.fact(position, "SetAside", task, between=between)
        if entry is not None:
            self._again(entry)
        return self._groups.broadcast("" if entry is None else entry["reason"])

    def recorded_start_over(self, position: Position, task: int, *, between: bool = False) -> str:
        """What a person was told when this task went back to its beginning here before; empty if it did not.

        The same on every rank; `started_over` is still to be called. between: whether that was found between
        two steps.
        """
        if not self.follows:
            return ""
        entry = None
        if self._groups.rank == 0:
            entry = self._replay_queue.next_fact(position, "StartedOver", task, between=between)
        return self._groups.broadcast("" if entry is None else entry["reason"])

    def recorded_set_asides(self, position: Position) -> dict[int, str]:
        """Tasks that were set aside between two decisions here before, and why; the same on every rank."""
        if not self.follows:
            return {}
        entries = self._replay_queue.set_asides(position)
        for entry in entries:
            self._again(entry)
        text = self._groups.broadcast(json.dumps([[e["task"], e["reason"]] for e in entries]))
        return dict(json.loads(text))

    def require_end(self, position: Position) -> None:
        """ReplayError on rank 0 if something is recorded after the end of the run that nothing leads to."""
        self._replay_queue.require_no_more(position)

    def exhausted(self) -> bool:
        """Whether no recorded effect is left to come; the same on every rank."""
        return not self._groups.broadcast("more" if self._replay_queue else "")

    @property
    def repeats(self) -> bool:
        """Whether recorded effects are still to come, as rank 0 knows at any time."""
        return bool(self._replay_queue)

    def agree(self, trouble: str) -> str:
        """The first trouble of any rank, told to all; empty when none has any."""
        return self._groups.first_trouble(trouble)

    def close(self) -> None:
        """End the reader and close the ledger."""
        self._wish_queue.close()
        if self._effects is not None:
            self._effects.close()

    # Rank 0 ---------------------------------------------------------------------------------------------

    def _collect(self, position: Position, *, due: bool, idle: bool, paused: bool) -> dict[str, Any]:
        self._wish_queue.receive()
        if self.closing:  # whatever waits stands in the ledger of wishes
            return {"interrupted": self.closing, "follows": bool(self._replay_queue)}
        if self._replay_queue:
            try:
                again = [
                    _without_position(entry, recorded=True) for entry in self._replay_queue.due(position)
                ]
                if paused and not again:  # nobody is heard before the end of the queue: it would be for ever
                    self._replay_queue.require_a_way(position)
            except ReplayError as error:
                raise self._cannot_be(str(error)) from error
            return {"decided": again, "follows": bool(self._replay_queue)}
        decided = [to_plain(Wish(0, TakeCheckpoint()))] if due else []
        for plain in self._next(position, idle=idle):
            if plain["kind"] == "RollBack" and not plain.get("refused"):
                # Whatever the run is now stays within reach, and what comes after belongs to another branch.
                spare = TakeCheckpoint(spare=plain["checkpoint"])
                decided += [to_plain(Wish(0, spare)), plain]
                break
            decided.append(plain)
        return {"decided": decided} if decided else {}

    def _next(self, position: Position, *, idle: bool) -> Iterator[dict[str, Any]]:
        """What is to be decided now: decisions of a branch that was left, wishes of people, arrivals."""
        new = self._wish_queue.asks_for_more
        for entry in self._outstanding.due(position[1], all_of_them=new, next_one=idle):
            yield _without_position(entry)
        if not self._outstanding:
            yield from map(to_plain, self._wish_queue.due(position))

    # Votes ----------------------------------------------------------------------------------------------

    def _vote(self, position: Position, decision: Decision, prepare: Prepare) -> Decision:
        wish, refused, commit, twice = decision.wish, decision.refused, _nothing, False
        command = wish.command
        if not refused:
            self.just_read = not decision.again
            commit, refused, twice = self._prepared(position, command, prepare, again=decision.again)
            self.just_read = False
        if refused and isinstance(command, Arrived) and not twice:
            aside = SetAside(name=command.name, path=command.path, reason=refused, digest=command.digest)
            wish, refused, commit = replace(wish, command=aside), "", prepare(aside)
            if self._groups.rank == 0:
                self._wish_queue.set_aside(command)
        decision = Decision(wish, refused, decision.again)
        entry = self._entry(position, decision)
        if decision.again:
            self._outstanding.renumbered |= renumbers(type(command).__name__, entry)
        if self._effects is not None:
            self._effects.append(entry)
        if not refused:
            commit()
        return decision

    def _as_before(self, position: Position, before: Decision, prepare: Prepare) -> Decision:
        """Apply what was applied and refuse what was refused; ReplayError where that cannot be."""
        command = before.wish.command
        commit: Commit = _nothing
        if not before.refused:
            self.repeating = True
            commit, trouble, _ = self._prepared(position, command, prepare)
            self.repeating = False
            if trouble:
                raise self._cannot_be(
                    f"{type(command).__name__} took effect at step {position[1]} of branch {position[0]} "
                    f"when it was recorded, but now: {trouble}"
                )
        self._again(self._entry(position, before))
        commit()
        return before

    def _prepared(
        self, position: Position, command: Command, prepare: Prepare, *, again: bool = False
    ) -> tuple[Commit, str, bool]:
        """How to carry out a command, why it cannot be, and whether that is because it is a task already."""
        trouble: str = ""
        commit: Commit = _nothing
        twice = False
        try:
            if again:
                self._outstanding.require_sure(command)
            commit = prepare(command)
        except Exception as error:  # whatever one rank cannot do, none does, and the run goes on
            raise_of_device(error)
            trouble = said_before(error, rank=self._groups.rank, step=position[1])
            twice = isinstance(error, AlreadyTaskError)
        reason = self.agree(trouble)
        return commit, reason, bool(reason) and bool(self.agree("twice" if twice else ""))

    def _fact(self, position: Position, command: SetAside | TaskDone | StartedOver | Finished) -> None:
        if self._effects is None:
            return
        entry = self._entry(position, Decision(Wish(0, command)))
        if not self._replay_queue:
            self._effects.append(entry)
            return
        recorded = self._replay_queue.fact(
            position, entry["kind"], entry.get("task"), between=entry.get("between", False)
        )
        if recorded is None or (not self._replay_queue.ours and recorded != entry):
            raise self._cannot_be(
                f"at step {position[1]} of branch {position[0]} the run has {entry}, the ledger "
                f"{recorded or 'nothing of the kind'}; code, data or settings are not those of the recorded "
                "run."
            )
        self._again(entry)

    def _cannot_be(self, reason: str) -> Exception:
        """What is raised where a script cannot come about: a replay ends, a run goes another way."""
        if not self._replay_queue.ours:
            return ReplayError(reason)
        if self._effects is not None and self._otherwise is not None:
            self._effects.append(self._otherwise)
        return RankError(f"{reason} The run goes on from its checkpoint as another branch.")

    def _again(self, entry: Entry) -> None:
        """Write down what took effect again, unless it stands in this ledger already."""
        if self._effects is not None and not self._replay_queue.ours:
            self._effects.append(entry)

    def _entry(self, position: Position, decision: Decision) -> Entry:
        entry = {
            "branch": position[0],
            "step": position[1],
            "world_size": self._groups.ranks,
            **to_plain(decision.wish),
        }
        if decision.again:
            entry[AGAIN] = True
        return {**entry, "refused": decision.refused} if decision.refused else entry


def _without_position(entry: Mapping[str, Any], *, recorded: bool = False) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name not in ("branch", "step", "world_size")}
    return {**kept, "recorded": True} if recorded else kept


def _nothing() -> None:
    """The commit of what could not be prepared."""
