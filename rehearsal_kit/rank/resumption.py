"""How ranks begin: from the newest checkpoint that all of them can take up, and what follows from there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rehearsal_kit.base.errors import CheckpointError, RehearsalKitError, said_before
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.data.folder_order import require_as_it_arrived
from rehearsal_kit.learning.strategies.choice import named_strategy
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.checkpoint_loader import (
    Candidates,
    LoadedCheckpoint,
    effects_recorded,
    find_candidates,
    load_checkpoint,
    next_segment,
)
from rehearsal_kit.rank.checkpoint_takeup import CheckpointTakeup, Ready, arrivals_to_train
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.decisions import Prepare
from rehearsal_kit.record.commands import Arrived, BeginAgain, Wish, from_plain, to_plain
from rehearsal_kit.record.effects import Effects, left_outstanding
from rehearsal_kit.record.records import CheckpointFailed, Restored
from rehearsal_kit.record.replay_queue import AGAIN, Entry, Outstanding, ReplayQueue
from rehearsal_kit.record.run_folder import RunFolder


@dataclass(frozen=True)
class _Way:
    """How to go on from a checkpoint; the same on every rank."""

    lost: Mapping[int, str] = field(default_factory=dict)
    """Tasks of it that cannot be read any more, and why."""
    again: BeginAgain | None = None
    """What is recorded now, because what was recorded after it binds no more; None: that is followed."""


class Resumption:
    """Begins one rank of a run, or of the replay of another one; all ranks call the same."""

    def __init__(self, context: RankContext, takeup: CheckpointTakeup, prepare: Prepare) -> None:
        self._with = context
        self._takeup = takeup
        self._prepare = prepare
        self._effects = Effects()

    def begin(self) -> None:
        """Be where the run is; what has taken effect from there on takes effect again."""
        its = self._with
        if its.spec.replays is None:
            self._go_on()
        else:
            self._replay()

    # A run of one's own ---------------------------------------------------------------------------------

    def _go_on(self) -> None:
        its = self._with
        self._effects = effects_recorded(its.spec.run, its.groups)
        candidates = find_candidates(its.spec.run, self._effects, its.groups)
        for number, reason in candidates.refused:
            its.reporter.tell(CheckpointFailed(checkpoint=number, reason=reason))
        number, way = self._newest_usable(candidates)
        again = way.again
        after = [] if again is not None else self._effects.after(number)
        outstanding = Outstanding(self._outstanding(number, again), renumbered=self._effects.renumbered)
        its.decisions.follow(ReplayQueue(after), outstanding, otherwise=self._otherwise(number))
        if number or its.generation > 1:
            its.reporter.tell(
                Restored(
                    step=its.run_state.step,
                    checkpoint=number,
                    generation=its.generation,
                    time=time.time(),
                )
            )
        if again is not None:
            decided = its.decisions.own(its.run_state.position, Wish(0, again), self._prepare)
            assert not decided.refused  # noqa: S101 - preparing it checks nothing

    def _newest_usable(self, candidates: Candidates) -> tuple[int, _Way]:
        """Number of the checkpoint that was taken up, and how to go on from it; 0: the very beginning."""
        its = self._with
        for number, place in candidates.places:
            trouble, ready = "", None
            try:
                loaded = load_checkpoint(its.spec.run, number, its.groups, identity=its.identity)
                ready = self._takeup.ready(loaded)
                if ready.run_state.position != place:
                    trouble = (
                        f"checkpoint {number} was taken at step {ready.run_state.step} of branch "
                        f"{ready.run_state.branch}, the ledger says at step {place[1]} of branch {place[0]}"
                    )
            except Exception as error:  # whatever it is, the one before may be well
                raise_of_device(error)
                trouble = said_before(error, rank=its.groups.rank, step=its.run_state.step)
            trouble, gone = self._agreed(trouble, {} if ready is None else self._takeup.gone(ready))
            if ready is not None and not trouble:
                # Where nothing took effect after it, a file may well be back when it is its turn; those of
                # the task under way are needed now.
                waits = () if self._effects.after(number) else range(ready.run_state.begun, len(ready.stream))
                lost = {task: why for task, why in gone.items() if task not in waits}
                trouble, way = self._taken_up(ready, self._way(ready, lost))
                if not trouble:
                    return number, way
            its.reporter.tell(CheckpointFailed(checkpoint=number, reason=trouble))
        if candidates.places or candidates.refused:
            self._takeup.forget()
            count = len(candidates.places) + len(candidates.refused)
            its.reporter.tell(
                CheckpointFailed(
                    checkpoint=0,
                    reason=f"none of the {count} checkpoints of this run can be used: it begins from its "
                    "very beginning, and everything that was trained is trained again",
                )
            )
        its.reporter.goes_on_from(0)
        return 0, self._way(None, {})

    def _taken_up(self, ready: Ready, way: _Way) -> tuple[str, _Way]:
        """Why a checkpoint cannot be taken up, empty if it was; and how to go on from it."""
        trouble = self._try(ready, way)
        loader = ready.loaded.state.get("lesson")
        if trouble and loader is not None and int(loader["task"]) not in way.lost:
            # A file can be opened, but perhaps not be read: all else of the checkpoint is worth more.
            _, unreadable = self._agreed("", self._takeup.unreadable(ready))
            lost = {**way.lost, **(unreadable or {int(loader["task"]): trouble})}
            way = self._way(ready, lost)
            trouble = self._try(ready, way)
        if not trouble:
            self._with.reporter.goes_on_from(ready.loaded.number)
            self._takeup.settle()
        return trouble, way

    def _try(self, ready: Ready, way: _Way) -> str:
        its, trouble = self._with, ""
        try:
            self._takeup.take_up(ready, way.lost)
        except Exception as error:
            raise_of_device(error)
            trouble = said_before(error, rank=its.groups.rank, step=ready.run_state.step)
        return its.decisions.agree(trouble)

    def _agreed(self, trouble: str, gone: Mapping[int, str]) -> tuple[str, dict[int, str]]:
        """The first trouble of any rank, and all that is gone for some rank, with the first reason."""
        answers = [
            json.loads(text) for text in self._with.groups.gather(json.dumps([trouble, [*gone.items()]]))
        ]
        lost: dict[int, str] = {}
        for _, pairs in reversed(answers):
            lost |= dict(pairs)
        return next((words for words, _ in answers if words), ""), dict(sorted(lost.items()))

    def _way(self, ready: Ready | None, lost: Mapping[int, str]) -> _Way:
        """What rank 0 finds of what holds after a checkpoint, None: after the very beginning; broadcast."""
        found = self._found(ready, lost) if self._with.groups.rank == 0 else None
        plain = json.loads(self._with.groups.broadcast(json.dumps(found)))
        again = None if plain["again"] is None else from_plain(plain["again"])
        assert again is None or isinstance(again, BeginAgain)  # noqa: S101 - for the type checker
        return _Way({int(task): why for task, why in plain["lost"]}, again)

    def _found(self, ready: Ready | None, lost: Mapping[int, str]) -> dict[str, object]:
        number, ranks = (0, 0) if ready is None else (ready.loaded.number, ready.loaded.ranks)
        after = self._effects.after(number)
        head = after[0] if after and after[0]["kind"] == "BeginAgain" else None
        recorded = {int(task): str(why) for task, why in head["lost"]} if head is not None else {}
        made_by = {entry["world_size"] for entry in after} or ({ranks} if number else set())
        bound = made_by <= {self._with.groups.ranks} and lost.keys() <= recorded.keys()
        run = self._with.spec.run
        present = [] if ready is None else [each for each, aside in ready.stream.arrivals if not aside]
        there = not any(_gone(entry, run) or _gone_there(entry, run, present) for entry in after)
        if bound and there and not (ready is not None and self._trained_gone(ready, after)):
            return {"lost": [*recorded.items()], "again": None}
        again = self._begin_again(number, lost)
        plain = {name: value for name, value in to_plain(Wish(0, again)).items() if name != "number"}
        return {"lost": [*lost.items()], "again": plain}

    def _trained_gone(self, ready: Ready, after: Sequence[Entry]) -> bool:
        """Whether a task that was trained before is trained again with a later one, and is gone by now."""
        if not any(entry["kind"] == "TaskDone" for entry in after):
            return False
        steered = [e["strategy"] for e in after if e["kind"] == "Steer" and "refused" not in e]
        strategies = [
            ready.run_state.live_settings.strategy,
            *(named_strategy(name) for name in steered if name),
        ]
        if all(len(strategy.tasks(1)) == 1 for strategy in strategies):
            return False
        aside = {entry.get("task") for entry in after if entry["kind"] == "SetAside"}
        trained = set(range(ready.run_state.begun)) - aside
        return bool(trained & self._takeup.gone(ready, trained).keys())

    def _begin_again(self, number: int, lost: Mapping[int, str]) -> BeginAgain:
        parent, left = self._effects.last
        return BeginAgain(
            checkpoint=number,
            ranks=self._with.groups.ranks,
            begins=self._effects.branches,
            checkpoints=self._effects.checkpoints,
            parent=parent,
            left=left,
            lost=tuple(lost.items()),
        )

    def _outstanding(self, number: int, again: BeginAgain | None) -> list[Entry]:
        if again is None:
            return list(self._effects.outstanding)
        return left_outstanding(self._effects.after(number), self._effects.outstanding)

    def _otherwise(self, number: int) -> Entry:
        """The entry after which the next ranks begin another branch at this checkpoint."""
        branch, step = self._with.run_state.position
        again = to_plain(Wish(0, self._begin_again(number, {})))
        return {"branch": branch, "step": step, "world_size": self._with.groups.ranks, **again}

    # The replay of another ---------------------------------------------------------------------------------

    def _replay(self) -> None:
        its = self._with
        assert its.spec.replays is not None  # noqa: S101 - for the type checker; the caller has looked
        entries = next_segment(its.spec.replays, its.spec.run, its.groups)
        again = entries[0] if entries and entries[0]["kind"] == "BeginAgain" else None
        found = {"checkpoint": 0, "lost": []} if again is None else again
        text = json.dumps([found["checkpoint"], found["lost"]])
        number, lost = json.loads(its.groups.broadcast(text))
        its.decisions.follow(ReplayQueue(entries, ours=False), Outstanding())
        if number:
            its.reporter.goes_on_from(number)
            loaded: LoadedCheckpoint = load_checkpoint(
                its.spec.run, number, its.groups, identity=its.identity
            )
            self._takeup.take_up(self._takeup.ready(loaded), [int(task) for task, _ in lost])
            self._takeup.settle()


def _gone(entry: Entry, run: RunFolder) -> str:
    """Why what arrived then cannot arrive again; empty if it can, or is no arrival."""
    if entry["kind"] != "Arrived" or "refused" in entry:
        return ""
    beside = ("branch", "step", "world_size", "number", "holder", AGAIN)
    arrived = from_plain({name: value for name, value in entry.items() if name not in beside})
    assert isinstance(arrived, Arrived)  # noqa: S101 - for the type checker
    return _changed(arrived, run)


def _gone_there(entry: Entry, run: RunFolder, present: Sequence[Arrived]) -> bool:
    """Whether this went back to a checkpoint after which a task is to be trained whose file is gone by now.

    present: the tasks of the checkpoint that is gone on from.
    """
    if entry["kind"] != "RollBack" or "refused" in entry:
        return False
    checkpoint = find_checkpoints(run.checkpoints).get(entry["checkpoint"])
    if checkpoint is None:  # it comes before this, and is taken again
        return False
    try:
        return any(_changed(arrived, run) for arrived in arrivals_to_train(checkpoint.state(), present))
    except (CheckpointError, KeyError, TypeError, ValueError):  # damaged since
        return True


def _changed(arrived: Arrived, run: RunFolder) -> str:
    """Why a file is not what it was when it arrived; empty if it is."""
    try:
        require_as_it_arrived(replace(arrived, path=run.find(arrived.path)))
    except RehearsalKitError as error:
        return str(error)
    return ""
