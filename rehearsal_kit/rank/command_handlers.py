"""What each command does to a rank: checked and readied first, then carried out without fail."""

from __future__ import annotations

import time
from dataclasses import asdict

from rehearsal_kit.base.errors import NotYetError, RankError, SettingsError
from rehearsal_kit.buffer.memory_limit import require_possible
from rehearsal_kit.buffer.row_layout import WORD
from rehearsal_kit.data.open_experience import ArrivedExperience
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.rank.checkpoint_loader import LoadedCheckpoint, load_checkpoint
from rehearsal_kit.rank.checkpoint_takeup import CheckpointTakeup
from rehearsal_kit.rank.checkpoint_writer import CheckpointCopy
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.decisions import Commit
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.rank.task_lifecycle import TaskLifecycle
from rehearsal_kit.rank.task_loaders import UnfinishedTask
from rehearsal_kit.record.commands import (
    Arrived,
    BeginAgain,
    Command,
    Evaluate,
    FinishStream,
    FinishTask,
    Note,
    Pause,
    Reopen,
    Reorder,
    Resume,
    RollBack,
    SetAside,
    Skip,
    Steer,
    Stop,
    TakeCheckpoint,
)
from rehearsal_kit.record.records import (
    BranchBegan,
    CheckpointTaken,
    Noted,
    TaskArrived,
    TaskSetAside,
    TasksReordered,
)
from rehearsal_kit.record.replay_queue import Position

TRAINED_AND_GONE = (
    "it was trained on the branch that was left, and its file could not be read any more when ranks began "
    "again; put it back and submit it again"
)
VISIBLE_S = 5.0
"""How long a rank waits for a file to appear on its machine that rank 0 has read on another."""


class CommandHandlers:
    """One rank's answer to commands; the same on all ranks."""

    def __init__(self, context: RankContext, task_lifecycle: TaskLifecycle, takeup: CheckpointTakeup) -> None:
        self._with = context
        self._task_lifecycle = task_lifecycle
        self._takeup = takeup
        self._now = takeup.now
        self._remark = ""

    def prepare(self, command: Command) -> Commit:  # noqa: C901, PLR0911, PLR0912 - one line per kind
        """Check a command and ready it; SettingsError and others, with nothing changed, if it cannot be."""
        run_state, now = self._with.run_state, self._now
        match command:
            case Arrived():
                experience = self._opened(command)
                return lambda: self._accept(command, experience)
            case SetAside():
                return lambda: self._tell_set_aside(command)
            case Steer():
                live_settings = self._steered(command)
                return lambda: self._steer(live_settings)
            case Pause() | Resume() | Stop():
                return lambda: run_state.change(type(command).__name__)
            case FinishStream():
                return run_state.finish_stream
            case Reopen():
                return self._reopen
            case FinishTask():
                if now.loader is None:
                    raise SettingsError("no task is under way, so there is none to finish.")
                return now.loader.finish
            case Skip():
                self._require_waiting([command.task])
                return lambda: self._skip(command.task)
            case Reorder():
                self._require_waiting(command.order)
                return lambda: self._reorder(command)
            case Evaluate():
                return self._evaluate
            case TakeCheckpoint():
                return lambda: self._take_checkpoint(command)
            case RollBack():
                return self._rolled_back(command)
            case BeginAgain():
                return lambda: self._begin_again(command)
            case Note():
                return lambda: self._note(command)
        return _nothing  # Watch: the control of rank 0 begins to look

    def take_remark(self) -> str:
        """What is to be said of the command carried out last, besides that it was; once."""
        remark, self._remark = self._remark, ""
        return remark

    # The stream -----------------------------------------------------------------------------------------

    def _opened(self, command: Arrived) -> ArrivedExperience:
        arrived = self._takeup.found(command)
        self._with.stream.require_new(arrived)
        deadline = time.monotonic() + VISIBLE_S
        while True:
            try:
                return self._takeup.shelf.opened(arrived, self._now.preparation)
            except NotYetError:
                # Rank 0 has just read it; on another machine a shared folder shows it a little later.
                here = self._with.groups.rank == 0 or not self._with.decisions.just_read
                if here or time.monotonic() > deadline:
                    raise
                time.sleep(VISIBLE_S / 20)

    def _accept(self, command: Arrived, experience: ArrivedExperience) -> None:
        its = self._with
        self._now.preparation = experience.fitted
        its.reporter.tell(
            TaskArrived(
                step=its.run_state.step,
                task=its.stream.append(command, experience),
                name=command.name,
                path=command.path,
                training=experience.count("training"),
                watched=experience.count("watched"),
                test=experience.count("test"),
                skipped=experience.skipped,
                simulated=experience.simulated,
            )
        )

    def _tell_set_aside(self, command: SetAside) -> None:
        its = self._with
        its.reporter.tell(
            TaskSetAside(
                step=its.run_state.step,
                name=command.name,
                path=command.path,
                reason=command.reason,
                task=command.task,
            )
        )

    def _require_waiting(self, tasks: tuple[int, ...] | list[int]) -> None:
        its = self._with
        waiting = [
            task for task in range(its.run_state.begun, len(its.stream)) if its.stream[task] is not None
        ]
        if wrong := [task for task in tasks if task not in waiting]:
            raise SettingsError(
                f"task {', '.join(map(str, wrong))} does not wait to be trained; those that wait are "
                f"{', '.join(map(str, waiting)) or 'none'}. The task under way is ended by finish_task()."
            )

    def _skip(self, task: int) -> None:
        its = self._with
        arrived, _ = its.stream.arrivals[task]
        self._tell_set_aside(
            SetAside(name=arrived.name, path=arrived.path, reason="skipped by a person", task=task)
        )
        its.stream.set_aside(task)

    def _reorder(self, command: Reorder) -> None:
        its = self._with
        first = its.stream.next_from(its.run_state.begun)
        later = [task for task in range(first, len(its.stream)) if task not in command.order]
        order = (*command.order, *later)
        its.stream.reorder(first, order)
        its.reporter.tell(TasksReordered(step=its.run_state.step, first=first, order=order))

    # Settings and states --------------------------------------------------------------------------------

    def _steered(self, command: Steer) -> LiveSettings:
        run_state, buffer, signature = self._with.run_state, self._now.buffer, self._with.learner.signature
        steered = run_state.live_settings.steered(command)
        # What was recorded had room once. Where it has none now, making the buffer says so, and waits.
        if not self._with.decisions.repeating:
            self._require_room(steered)
        layout = None if buffer is None else buffer.layout
        steered.require_after(run_state.live_settings, signature=signature, layout=layout)
        return steered

    def _require_room(self, steered: LiveSettings) -> None:
        """SettingsError if the buffer that there is, or that will be made, could not be as large as this."""
        loader, buffer, signature = self._now.loader, self._now.buffer, self._with.learner.signature
        if buffer is not None:
            buffer.require_possible(steered.rehearsal)
        elif steered.needs_buffer:
            row_bytes = WORD  # no row is shorter
            if loader is not None and signature is not None:
                row_bytes = steered.stored(loader.shard.none, signature.no_outputs("cpu"))[0].row_bytes
            groups = self._with.groups
            capacity = steered.rehearsal.samples(row_bytes)
            require_possible(capacity, row_bytes, rank=groups.rank, ranks=groups.ranks)

    def _steer(self, steered: LiveSettings) -> None:
        its = self._with
        its.reporter.flush()  # its records are each of one strategy
        before, ranks = its.run_state.live_settings, its.groups.ranks
        if steered.sizes(ranks) != before.sizes(ranks) and (words := steered.scaled(ranks)):
            its.reporter.tell(Noted(step=its.run_state.step, text=words, time=time.time()))
        its.run_state.steer(steered)
        its.learner.steer(steered.training)
        if self._now.loader is not None:
            self._now.loader.resize(steered.sizes(its.groups.ranks).batch)

    def _reopen(self) -> None:
        run_state = self._with.run_state
        if not run_state.outcome:  # nobody has ended it, so that it goes on anyhow
            return
        stream = self._with.stream
        left = stream.next_from(run_state.begun) < len(stream) or self._now.loader is not None
        run_state.reopen(more_may_come=run_state.outcome == "finished" or not left)

    def _note(self, command: Note) -> None:
        its = self._with
        its.reporter.tell(Noted(step=its.run_state.step, text=command.text, time=time.time()))

    def _evaluate(self) -> None:
        its, loader = self._with, self._now.loader
        its.reporter.flush()
        its.evaluation.now(its.evaluation.newest if loader is None else loader.task, step=its.run_state.step)

    # Checkpoints ----------------------------------------------------------------------------------------

    def _take_checkpoint(self, command: TakeCheckpoint) -> None:
        its, run_state = self._with, self._with.run_state
        if command.spare is not None:
            its.checkpoint_writer.pinned.add(command.spare)
        its.reporter.flush()
        sums = its.learner.state.sums()
        its.checkpoint_writer.ready(run_state.checkpoints + 1)
        everyone = its.groups.gather(sums)
        if len(set(everyone)) > 1:
            raise RankError(
                f"the ranks hold different weights before step {run_state.step} ({', '.join(everyone)}), so "
                "this generation ends; does the network or the strategy depend on the rank?"
            )
        run_state.count_checkpoint()
        buffer = self._now.buffer
        copied = CheckpointCopy(
            number=run_state.checkpoints,
            state=self._state(),
            tensors=its.learner.state.copied() if its.groups.rank == 0 else dict,
            buffer=None if buffer is None else buffer.frozen(),
            error=its.evaluation.error,
        )
        its.reporter.tell(
            CheckpointTaken(step=run_state.step, checkpoint=copied.number, sums=sums, time=time.time())
        )
        its.checkpoint_writer.take(copied, step=run_state.step)

    def _state(self) -> dict[str, object]:
        its, loader = self._with, self._now.loader
        arrivals = [[asdict(arrived), gone] for arrived, gone in its.stream.arrivals]
        return {
            "course": its.run_state.to_plain(),
            "stream": arrivals,
            "order": its.stream.order,
            "lesson": None if loader is None else loader.to_plain(ranks=its.groups.ranks),
            "signature": None if its.learner.signature is None else its.learner.signature.to_plain(),
            "evaluation": its.evaluation.to_plain(),
            "preparation": asdict(self._now.preparation),
            "seed": its.spec.seed,
        }

    def _rolled_back(self, command: RollBack) -> Commit:
        its = self._with
        its.checkpoint_writer.settle()
        its.groups.barrier()  # all parts are written, and rank 0 has put them together
        loaded = load_checkpoint(its.spec.run, command.checkpoint, its.groups, identity=its.identity)
        there = RunState.from_plain(loaded.state["course"], LiveSettings.of(its.spec))
        if there.begun > len(its.stream):
            raise SettingsError(f"checkpoint {command.checkpoint} knows tasks that this run does not have.")
        stream = its.stream.ordered(loaded.state["order"])
        same = stream.order == its.stream.order
        under_way = self._takeup.under_way(loaded, stream, now=self._now.loader if same else None)
        return lambda: self._roll_back(loaded, there, (stream, under_way))

    def _roll_back(
        self, loaded: LoadedCheckpoint, there: RunState, to: tuple[TaskStream, UnfinishedTask]
    ) -> None:
        its, run_state = self._with, self._with.run_state
        stream, under_way = to
        its.reporter.flush()
        left = run_state.position
        if self._now.buffer is not None:
            self._now.buffer.close()
            self._now.buffer = None
        run_state.back_to(there)
        its.stream.take_order_of(stream)
        its.checkpoint_writer.pinned.add(loaded.number)
        self._tell_branch(loaded.number, left=left)
        trained = its.evaluation.trained
        self._takeup.adopt(loaded, under_way)
        self._takeup.settle()
        for task in sorted(trained - its.evaluation.trained):
            if its.stream[task] is None:  # said so far only as trained and gone: it cannot be trained again
                self._task_lifecycle.tell_lost(task, TRAINED_AND_GONE)
        self._remark = self._not_taken_back(loaded)

    def _begin_again(self, command: BeginAgain) -> None:
        its, run_state = self._with, self._with.run_state
        run_state.begin_again(command)
        its.checkpoint_writer.pinned.add(command.checkpoint)
        stream = its.stream
        aside = tuple(task for task in range(len(stream)) if stream[task] is None)
        left = (command.parent, command.left)
        self._tell_branch(command.checkpoint, left=left, tasks=len(stream), aside=aside)
        for task, reason in command.lost:
            self._task_lifecycle.tell_lost(task, reason)

    def _tell_branch(
        self, checkpoint: int, *, left: Position, tasks: int | None = None, aside: tuple[int, ...] = ()
    ) -> None:
        """Tell that the present branch began at a checkpoint, and of the position that was left for it."""
        reporter, run_state = self._with.reporter, self._with.run_state
        reporter.branch = run_state.branch
        reporter.tell(
            BranchBegan(
                branch=run_state.branch,
                step=run_state.step,
                checkpoint=checkpoint,
                parent=left[0],
                left=left[1],
                time=time.time(),
                tasks=tasks,
                aside=aside,
            )
        )

    def _not_taken_back(self, loaded: LoadedCheckpoint) -> str:
        """What a roll back leaves as it is, and the way back from there; empty where that is nothing."""
        its = self._with
        then = {number: aside for number, (_, aside) in enumerate(loaded.state["stream"])}
        tasks = range(len(its.stream))
        arrived = [task for task in tasks if task not in then and its.stream[task] is not None]
        gone = [task for task in tasks if not then.get(task, False) and its.stream[task] is None]
        said_of = []
        if arrived:
            said_of.append(f"task {', '.join(map(str, arrived))} arrived since then and will be trained")
        if gone:
            names = ", ".join(f"{task} ({its.stream.arrivals[task][0].path})" for task in gone)
            said_of.append(
                f"task {names} was skipped or set aside since then and stays so; to have it trained after "
                "all, submit its file again"
            )
        return "; ".join(said_of)


def _nothing() -> None:
    """The commit of what changes nothing on a rank."""
