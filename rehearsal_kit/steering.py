"""What each command does to a rank: checked and readied first, then carried out without fail."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from rehearsal_kit.commands import (
    Arrived,
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
from rehearsal_kit.control import Commit
from rehearsal_kit.course import Course
from rehearsal_kit.curriculum import Curriculum, TakenUp
from rehearsal_kit.equipment import Equipment
from rehearsal_kit.errors import NotYetError, RankError, SettingsError
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.experiences import ArrivedExperience, Shelf
from rehearsal_kit.in_force import InForce
from rehearsal_kit.keeper import Copied
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.restoring import Loaded, load_checkpoint
from rehearsal_kit.rounds import BufferState
from rehearsal_kit.settings import with_tuples
from rehearsal_kit.strategies.choice import require_stored
from rehearsal_kit.stream import Stream
from rehearsal_kit.telemetry import (
    BranchBegan,
    CheckpointTaken,
    Noted,
    TaskArrived,
    TaskSetAside,
    TasksReordered,
)

VISIBLE_S = 5.0
"""How long a rank waits for a file to appear on its machine that rank 0 has read on another."""


@dataclass
class Learning:
    """What a rank is in the middle of."""

    lesson: Lesson | None = None
    buffer: DistributedBuffer | None = None


class Steering:
    """One rank's answer to commands; the same on all ranks."""

    def __init__(self, equipment: Equipment, curriculum: Curriculum, learning: Learning) -> None:
        self._with = equipment
        self._curriculum = curriculum
        self._now = learning
        self._preparation = equipment.job.preparation
        self._shelf = Shelf()

    def prepare(self, command: Command) -> Commit:  # noqa: C901, PLR0911, PLR0912 - one line per kind
        """Check a command and ready it; SettingsError and others, with nothing changed, if it cannot be."""
        course, now = self._with.course, self._now
        match command:
            case Arrived():
                experience = self._opened(command)
                return lambda: self._accept(command, experience)
            case SetAside():
                return lambda: self._tell_set_aside(command)
            case Steer():
                in_force = self._steered(command)
                return lambda: self._steer(in_force)
            case Pause() | Resume():
                return lambda: self._pause(isinstance(command, Pause))
            case FinishStream():
                return lambda: setattr(course, "finishing", True)
            case Reopen():
                return self._reopen
            case Stop():
                return lambda: setattr(course, "outcome", "stopped")
            case FinishTask():
                if now.lesson is None:
                    raise SettingsError("no task is under way, so there is none to finish.")
                return now.lesson.finish
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
            case Note():
                return lambda: self._note(command)
        return _nothing  # Watch: the control of rank 0 begins to look

    def take_up(self, loaded: Loaded) -> None:
        """Go on where a checkpoint was taken, before the first step of this rank."""
        its = self._with
        self._preparation = Preparation(**with_tuples(loaded.state["preparation"]))
        for plain, gone in loaded.state["stream"]:
            arrived = Arrived(**with_tuples(plain))
            its.stream.append(arrived, None if gone else self._shelf.known(arrived, self._preparation))
        its.stream.arrived_as(loaded.state["order"])
        lesson = self._lesson(loaded, its.stream)
        self._adopt(loaded, lesson)

    # The stream -----------------------------------------------------------------------------------------

    def _opened(self, command: Arrived) -> ArrivedExperience:
        self._with.stream.require_new(command)
        deadline = time.monotonic() + VISIBLE_S
        while True:
            try:
                return self._shelf.opened(command, self._preparation)
            except NotYetError:
                # Rank 0 has just read it; on another machine a shared folder shows it a little later.
                if self._with.groups.rank == 0 or time.monotonic() > deadline:
                    raise
                time.sleep(VISIBLE_S / 20)

    def _accept(self, command: Arrived, experience: ArrivedExperience) -> None:
        its = self._with
        self._preparation = experience.fitted
        its.reporter.tell(
            TaskArrived(
                step=its.course.step,
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
                step=its.course.step,
                name=command.name,
                path=command.path,
                reason=command.reason,
                task=command.task,
            )
        )

    def _require_waiting(self, tasks: tuple[int, ...] | list[int]) -> None:
        its = self._with
        waiting = [task for task in range(its.course.begun, len(its.stream)) if its.stream[task] is not None]
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
        first = its.course.begun
        later = [task for task in range(first, len(its.stream)) if task not in command.order]
        order = (*command.order, *later)
        its.stream.reorder(first, order)
        its.reporter.tell(TasksReordered(step=its.course.step, first=first, order=order))

    # Settings and states --------------------------------------------------------------------------------

    def _steered(self, command: Steer) -> InForce:
        course, buffer, signature = self._with.course, self._now.buffer, self._with.learner.signature
        steered = course.in_force.steered(command)
        if buffer is not None:
            buffer.require_possible(steered.rehearsal)
        changed = steered.strategy.name != course.in_force.strategy.name
        if changed and signature is not None:
            require_stored(steered.strategy, None if buffer is None else buffer.layout)
        return steered

    def _steer(self, steered: InForce) -> None:
        its = self._with
        its.reporter.flush()  # its records are each of one strategy
        its.course.in_force = steered
        its.learner.learning_rate = steered.learning_rate
        if self._now.lesson is not None:
            self._now.lesson.batch = steered.batch

    def _pause(self, paused: bool) -> None:
        self._with.course.paused, self._with.course.trouble = paused, ""

    def _reopen(self) -> None:
        course = self._with.course
        course.outcome = ""
        if course.begun == len(self._with.stream) and self._now.lesson is None:  # it had finished
            course.finishing = False

    def _note(self, command: Note) -> None:
        its = self._with
        its.reporter.tell(Noted(step=its.course.step, text=command.text, time=time.time()))

    def _evaluate(self) -> None:
        its, lesson = self._with, self._now.lesson
        its.reporter.flush()
        its.evaluation.now(its.evaluation.newest if lesson is None else lesson.task, step=its.course.step)

    # Checkpoints ----------------------------------------------------------------------------------------

    def _take_checkpoint(self, command: TakeCheckpoint) -> None:
        its, course = self._with, self._with.course
        if command.spare is not None:
            its.keeper.pinned.add(command.spare)
        its.reporter.flush()
        weights = its.learner.fingerprint()
        everyone = its.groups.gather(weights)
        if len(set(everyone)) > 1:
            raise RankError(
                f"the ranks hold different weights before step {course.step} ({', '.join(everyone)}), so "
                "this generation ends; does the network or the strategy depend on the rank?"
            )
        course.checkpoints += 1
        buffer = self._now.buffer
        copied = Copied(
            number=course.checkpoints,
            state=self._state(),
            tensors=its.learner.tensors() if its.groups.rank == 0 else {},
            buffer=None if buffer is None else buffer.state().copied(),
            error=its.evaluation.error,
        )
        its.reporter.tell(
            CheckpointTaken(step=course.step, checkpoint=copied.number, weights=weights, time=time.time())
        )
        its.keeper.take(copied, step=course.step)

    def _state(self) -> dict[str, object]:
        its = self._with
        arrivals = [[asdict(arrived), gone] for arrived, gone in its.stream.arrivals]
        return {
            "course": its.course.to_plain(),
            "stream": arrivals,
            "order": its.stream.order,
            "lesson": self._curriculum.to_plain(self._now.lesson),
            "evaluation": its.evaluation.to_plain(),
            "preparation": asdict(self._preparation),
            "seed": its.job.seed,
        }

    def _rolled_back(self, command: RollBack) -> Commit:
        its = self._with
        its.keeper.settle()
        its.groups.gather("")  # all parts are written, and rank 0 has put them together
        loaded = load_checkpoint(its.job.run, command.checkpoint, its.groups)
        there = Course.from_plain(loaded.state["course"], InForce.of(its.job))
        if there.begun > len(its.stream):
            raise SettingsError(f"checkpoint {command.checkpoint} knows tasks that this run does not have.")
        stream = its.stream.ordered(loaded.state["order"])
        lesson = self._lesson(loaded, stream)
        return lambda: self._roll_back(loaded, there, (stream, lesson))

    def _roll_back(self, loaded: Loaded, there: Course, to: tuple[Stream, TakenUp | None]) -> None:
        its, course = self._with, self._with.course
        stream, lesson = to
        its.reporter.flush()
        parent, left = course.position
        if self._now.buffer is not None:
            self._now.buffer.close()
            self._now.buffer = None
        course.back_to(there)
        its.stream.take_order_of(stream)
        its.keeper.pinned.add(loaded.number)
        its.reporter.branch = course.branch
        its.reporter.tell(
            BranchBegan(
                branch=course.branch,
                step=course.step,
                checkpoint=loaded.number,
                parent=parent,
                left=left,
                time=time.time(),
            )
        )
        self._adopt(loaded, lesson)

    def _lesson(self, loaded: Loaded, stream: Stream) -> TakenUp | None:
        plain = loaded.state["lesson"]
        return None if plain is None else self._curriculum.lesson_of(plain, stream)

    def _adopt(self, loaded: Loaded, lesson: TakenUp | None) -> None:
        its, course = self._with, self._with.course
        its.learner.adopt(loaded.tensors)
        its.learner.learning_rate = course.in_force.learning_rate
        its.evaluation.restore(loaded.state["evaluation"])
        self._now.lesson = None
        if lesson is not None:
            self._now.lesson = lesson[0]
            self._curriculum.take_up(lesson[1])
        self._curriculum.recognise(self._now.lesson)
        if loaded.buffer is not None:
            self._now.buffer = self._filled(loaded.buffer)

    def _filled(self, state: BufferState) -> DistributedBuffer:
        its = self._with
        half = tuple(field.name for field in state.layout.fields if field.half)
        settings = replace(its.course.in_force.rehearsal, policy=state.policy, half=half)
        buffer = DistributedBuffer(
            state.layout,
            settings,
            seed=its.job.seed,
            exchange=GroupExchange(its.groups),
            device=its.job.device,
        )
        buffer.restore(state)
        return buffer


def _nothing() -> None:
    """The commit of what changes nothing on a rank."""
