"""What each command does to a rank: checked and readied first, then carried out without fail."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from rehearsal_kit.commands import (
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
from rehearsal_kit.control import Commit
from rehearsal_kit.course import Course
from rehearsal_kit.curriculum import Curriculum, TakenUp
from rehearsal_kit.equipment import Equipment
from rehearsal_kit.errors import CheckpointError, NotYetError, RankError, SettingsError
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.experiences import ArrivedExperience, Shelf
from rehearsal_kit.in_force import InForce
from rehearsal_kit.keeper import Copied
from rehearsal_kit.layout import WORD
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.restoring import Loaded, load_checkpoint
from rehearsal_kit.room import require_possible
from rehearsal_kit.rounds import BufferState
from rehearsal_kit.settings import with_tuples
from rehearsal_kit.strategies.choice import require_stored
from rehearsal_kit.stream import Stream
from rehearsal_kit.telemetry import (
    UNTRAINED,
    BranchBegan,
    CheckpointTaken,
    Noted,
    TaskArrived,
    TaskSetAside,
    TasksReordered,
)

VISIBLE_S = 5.0
"""How long a rank waits for a file to appear on its machine that rank 0 has read on another."""


@dataclass(frozen=True)
class Ready:
    """A checkpoint that can be taken up, as far as one rank can tell."""

    loaded: Loaded
    course: Course
    preparation: Preparation
    stream: Stream
    """Its tasks in their order then; their files are opened when something of them is asked for."""


@dataclass(frozen=True)
class UnderWay:
    """The task that a checkpoint was taken in the middle of, as far as it is still there."""

    lesson: TakenUp | None
    anew: bool = False
    """Whether a task of it is gone: weights and optimizer go back to where it began."""
    began: int = 0


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
        self._remark = ""
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
            case Pause() | Resume() | Stop():
                return lambda: course.change(type(command).__name__)
            case FinishStream():
                return lambda: setattr(course, "finishing", True)
            case Reopen():
                return self._reopen
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
            case BeginAgain():
                return lambda: self._begin_again(command)
            case Note():
                return lambda: self._note(command)
        return _nothing  # Watch: the control of rank 0 begins to look

    def take_remark(self) -> str:
        """What is to be said of the command carried out last, besides that it was; once."""
        remark, self._remark = self._remark, ""
        return remark

    def ready(self, loaded: Loaded) -> Ready:
        """All that a checkpoint says, read and understood; changes nothing, and does not ask the other ranks.

        Raises whatever comes of a state that is not one; no file of a task is opened.
        """
        its, state = self._with, loaded.state
        preparation = Preparation(**with_tuples(state["preparation"]))
        stream = Stream(its.groups, seed=its.job.seed)
        for plain, aside in state["stream"]:
            arrived = Arrived(**with_tuples(plain))
            known = None if aside else self._shelf.known(self._found(arrived), preparation)
            stream.append(arrived, known)
        stream.arrived_as(state["order"])
        if its.job.seed != state["seed"]:
            raise CheckpointError(f"it is of a run with seed {state['seed']}, this one has {its.job.seed}.")
        there = Course.from_plain(state["course"], InForce.of(its.job))
        return Ready(loaded, there, preparation, stream)

    def take_up(self, ready: Ready, lost: Iterable[int]) -> None:
        """Go on where a checkpoint was taken, before the first step of this rank.

        lost: tasks that some rank cannot read any more, the same on all ranks. Where the task under way is
        one of them, weights and optimizer are back where it began.
        """
        its = self._with
        for task in lost:
            ready.stream.set_aside(task)
        its.course.restart(ready.course)
        self._preparation = ready.preparation
        its.stream.become(ready.stream)
        self._adopt(ready.loaded, self._under_way(ready.loaded, its.stream))

    def forget(self) -> None:
        """Be as before the first step, whatever of a checkpoint was taken up."""
        its = self._with
        its.course.restart(Course(InForce.of(its.job)))
        its.stream.become(Stream(its.groups, seed=its.job.seed))
        its.learner.restart()
        its.learner.learning_rate = its.course.in_force.learning_rate
        its.evaluation.restore({"newest": UNTRAINED, "seen": [], "errors": []})
        self._preparation, self._now.lesson = its.job.preparation, None
        if self._now.buffer is not None:
            self._now.buffer.abandon()
            self._now.buffer = None

    # The stream -----------------------------------------------------------------------------------------

    def _found(self, arrived: Arrived) -> Arrived:
        """With the whole path of its file, which may lie in the run folder."""
        return replace(arrived, path=self._with.job.run.find(arrived.path))

    def _opened(self, command: Arrived) -> ArrivedExperience:
        arrived = self._found(command)
        self._with.stream.require_new(arrived)
        deadline = time.monotonic() + VISIBLE_S
        while True:
            try:
                return self._shelf.opened(arrived, self._preparation)
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
        # What was recorded had room once. Where it has none now, making the buffer says so, and waits.
        if not self._with.control.repeating:
            self._require_room(steered)
        changed = steered.strategy.name != course.in_force.strategy.name
        if changed and signature is not None:
            require_stored(steered.strategy, None if buffer is None else buffer.layout)
        return steered

    def _require_room(self, steered: InForce) -> None:
        """SettingsError if the buffer that there is, or that will be made, could not be as large as this."""
        lesson, buffer, signature = self._now.lesson, self._now.buffer, self._with.learner.signature
        if buffer is not None:
            buffer.require_possible(steered.rehearsal)
        elif steered.needs_buffer:
            row_bytes = WORD  # no row is shorter
            if lesson is not None and signature is not None:
                row_bytes = steered.stored(lesson.samples, signature.no_outputs("cpu"))[0].row_bytes
            groups = self._with.groups
            capacity = steered.rehearsal.samples(row_bytes)
            require_possible(capacity, row_bytes, rank=groups.rank, ranks=groups.ranks)

    def _steer(self, steered: InForce) -> None:
        its = self._with
        its.reporter.flush()  # its records are each of one strategy
        its.course.in_force = steered
        its.learner.learning_rate = steered.learning_rate
        if self._now.lesson is not None:
            self._now.lesson.batch = steered.batch

    def _reopen(self) -> None:
        course = self._with.course
        if not course.outcome:  # nobody has ended it, so that it goes on anyhow
            return
        left = course.begun < len(self._with.stream) or self._now.lesson is not None
        if course.outcome == "finished" or not left:  # now more may come
            course.finishing = False
        course.change("Reopen")

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
        its.keeper.ready(course.checkpoints + 1)
        everyone = its.groups.gather(weights)
        if len(set(everyone)) > 1:
            raise RankError(
                f"the ranks hold different weights before step {course.step} ({', '.join(everyone)}), so "
                "this generation ends; does the network or the strategy depend on the rank?"
            )
        course.checkpoints += 1
        course.kept = course.outcome
        buffer = self._now.buffer
        copied = Copied(
            number=course.checkpoints,
            state=self._state(),
            tensors=its.learner.tensors() if its.groups.rank == 0 else {},
            buffer=None if buffer is None else buffer.frozen(),
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
        loaded = load_checkpoint(its.job.run, command.checkpoint, its.groups, identity=its.identity)
        there = Course.from_plain(loaded.state["course"], InForce.of(its.job))
        if there.begun > len(its.stream):
            raise SettingsError(f"checkpoint {command.checkpoint} knows tasks that this run does not have.")
        stream = its.stream.ordered(loaded.state["order"])
        same = stream.order == its.stream.order
        under_way = self._under_way(loaded, stream, now=self._now.lesson if same else None)
        return lambda: self._roll_back(loaded, there, (stream, under_way))

    def _roll_back(self, loaded: Loaded, there: Course, to: tuple[Stream, UnderWay]) -> None:
        its, course = self._with, self._with.course
        stream, under_way = to
        its.reporter.flush()
        parent, left = course.position
        if self._now.buffer is not None:
            self._now.buffer.close()
            self._now.buffer = None
        course.back_to(there)
        its.stream.take_order_of(stream)
        its.keeper.pinned.add(loaded.number)
        self._tell_branch(loaded.number, parent, left)
        self._adopt(loaded, under_way)
        self.settle()
        self._remark = self._not_taken_back(loaded)

    def _begin_again(self, command: BeginAgain) -> None:
        its, course = self._with, self._with.course
        course.begin_again(command)
        its.keeper.pinned.add(command.checkpoint)
        self._tell_branch(command.checkpoint, command.parent, command.left)
        for task, reason in command.lost:
            self._curriculum.tell_lost(task, reason)

    def _tell_branch(self, checkpoint: int, parent: int, left: int) -> None:
        its, course = self._with, self._with.course
        its.reporter.branch = course.branch
        its.reporter.tell(
            BranchBegan(
                branch=course.branch,
                step=course.step,
                checkpoint=checkpoint,
                parent=parent,
                left=left,
                time=time.time(),
            )
        )

    def _not_taken_back(self, loaded: Loaded) -> str:
        """What a roll back leaves as it is, and the way back from there; empty where that is nothing."""
        its = self._with
        then = {number: aside for number, (_, aside) in enumerate(loaded.state["stream"])}
        arrived = [task for task in range(len(its.stream)) if task not in then]
        gone = [
            task
            for task, aside in then.items()
            if not aside and task < len(its.stream) and its.stream[task] is None
        ]
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

    def _under_way(self, loaded: Loaded, stream: Stream, *, now: Lesson | None = None) -> UnderWay:
        plain = loaded.state["lesson"]
        if plain is None:
            return UnderWay(None)
        if all(stream[int(task)] is not None for task in plain["tasks"]):
            return UnderWay(self._curriculum.lesson_of(plain, stream, under_way=now))
        there = stream[int(plain["task"])] is not None
        lesson = self._curriculum.lesson_anew(plain, stream) if there else None
        return UnderWay(lesson, anew=True, began=int(plain["began"]))

    def _adopt(self, loaded: Loaded, under_way: UnderWay) -> None:
        its, course = self._with, self._with.course
        its.learner.adopt(loaded.tensors)
        its.learner.learning_rate = course.in_force.learning_rate
        its.evaluation.restore(loaded.state["evaluation"])
        self._now.lesson = None
        if under_way.lesson is not None:
            self._now.lesson = under_way.lesson[0]
            self._curriculum.take_up(under_way.lesson[1])
        if under_way.anew:
            its.learner.go_back()
            course.spoilt.append(range(under_way.began, course.step))
        if self._now.lesson is not None and under_way.anew:
            self._now.lesson.batch = course.in_force.batch
            self._now.lesson.again(course.step)
        self._curriculum.recognise(self._now.lesson)
        if self._now.buffer is not None:  # of a checkpoint that could not be taken up
            self._now.buffer.abandon()
        self._now.buffer = None if loaded.buffer is None else self._filled(loaded.buffer)

    def settle(self) -> None:
        """After a checkpoint was taken up, on all ranks alike: how long a task is that was begun anew."""
        if self._now.lesson is not None and not self._now.lesson.taken:
            self._curriculum.measure(self._now.lesson)

    def _filled(self, state: BufferState) -> DistributedBuffer:
        its = self._with
        half = tuple(field.name for field in state.layout.fields if field.half)
        in_force = its.course.in_force.rehearsal
        # What is steered takes effect in the next round: until then the store is as large as it was.
        capacity = max(state.capacity, in_force.samples(state.layout.row_bytes))
        settings = replace(in_force, policy=state.policy, half=half, capacity=capacity)
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
