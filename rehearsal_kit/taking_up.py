"""Going on from a checkpoint: weights, buffer, tasks and lesson, as far as they are still there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rehearsal_kit.commands import Arrived
from rehearsal_kit.control import said
from rehearsal_kit.course import Course
from rehearsal_kit.curriculum import Curriculum, TakenUp
from rehearsal_kit.equipment import Equipment
from rehearsal_kit.errors import CheckpointError
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.experiences import open_experience
from rehearsal_kit.in_force import InForce
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.restoring import Loaded
from rehearsal_kit.rounds import BufferState
from rehearsal_kit.settings import with_tuples
from rehearsal_kit.stream import Stream
from rehearsal_kit.telemetry import UNTRAINED


@dataclass(frozen=True)
class Ready:
    """A checkpoint that can be taken up, as far as one rank can tell."""

    loaded: Loaded
    course: Course
    preparation: Preparation
    stream: Stream
    """Its tasks in their order then; those that cannot be opened any more are as if set aside."""
    gone: Mapping[int, str]
    """These, and why."""


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

    preparation: Preparation
    """Of scans that arrive; fitted by the first of them."""
    lesson: Lesson | None = None
    buffer: DistributedBuffer | None = None


class TakingUp:
    """One rank's way back to a checkpoint; the same on all ranks."""

    def __init__(self, equipment: Equipment, curriculum: Curriculum, learning: Learning) -> None:
        self._with = equipment
        self._curriculum = curriculum
        self.now = learning

    def ready(self, loaded: Loaded) -> Ready:
        """All that a checkpoint says, read and understood; changes nothing, and does not ask the other ranks.

        Raises whatever comes of a state that is not one; a file that cannot be opened is only said.
        """
        its, state = self._with, loaded.state
        preparation = Preparation(**with_tuples(state["preparation"]))
        stream, gone = Stream(its.groups, seed=its.job.seed), {}
        for plain, aside in state["stream"]:
            arrived, experience = Arrived(**with_tuples(plain)), None
            try:
                experience = None if aside else open_experience(arrived, preparation)
            except Exception as error:  # moved, damaged, of another owner: the run must go on without it
                gone[len(stream)] = said(error, rank=its.groups.rank, step=int(state["course"]["step"]))
            stream.append(arrived, experience)
        stream.arrived_as(state["order"])
        if its.job.seed != state["seed"]:
            raise CheckpointError(f"it is of a run with seed {state['seed']}, this one has {its.job.seed}.")
        there = Course.from_plain(state["course"], InForce.of(its.job))
        return Ready(loaded, there, preparation, stream, gone)

    def take_up(self, ready: Ready, lost: Iterable[int]) -> None:
        """Go on where a checkpoint was taken, before the first step of this rank.

        lost: tasks that some rank cannot read any more, the same on all ranks. Where the task under way is
        one of them, weights and optimizer are back where it began.
        """
        its = self._with
        for task in lost:
            ready.stream.set_aside(task)
        its.course.restart(ready.course)
        self.now.preparation = ready.preparation
        its.stream.become(ready.stream)
        self.adopt(ready.loaded, self.under_way(ready.loaded, its.stream))

    def settle(self) -> None:
        """After a checkpoint was taken up, on all ranks alike: how long a task is that was begun anew."""
        if self.now.lesson is not None and not self.now.lesson.taken:
            self._curriculum.measure(self.now.lesson)

    def forget(self) -> None:
        """Be as before the first step, whatever of a checkpoint was taken up."""
        its = self._with
        its.course.restart(Course(InForce.of(its.job)))
        its.stream.become(Stream(its.groups, seed=its.job.seed))
        its.learner.restart()
        its.learner.learning_rate = its.course.in_force.learning_rate
        its.evaluation.restore({"newest": UNTRAINED, "seen": [], "errors": []})
        self.now.preparation, self.now.lesson = its.job.preparation, None
        if self.now.buffer is not None:
            self.now.buffer.abandon()
            self.now.buffer = None

    def under_way(self, loaded: Loaded, stream: Stream) -> UnderWay:
        """The task that a checkpoint was taken in the middle of; stream: its tasks in their order then."""
        plain = loaded.state["lesson"]
        if plain is None:
            return UnderWay(None)
        if all(stream[int(task)] is not None for task in plain["tasks"]):
            return UnderWay(self._curriculum.lesson_of(plain, stream))
        there = stream[int(plain["task"])] is not None
        lesson = self._curriculum.lesson_anew(plain, stream) if there else None
        return UnderWay(lesson, anew=True, began=int(plain["began"]))

    def adopt(self, loaded: Loaded, under_way: UnderWay) -> None:
        """Be what was learned there; the course is there already."""
        its, course = self._with, self._with.course
        its.learner.adopt(loaded.tensors)
        its.learner.learning_rate = course.in_force.learning_rate
        its.evaluation.restore(loaded.state["evaluation"])
        self.now.lesson = None
        if under_way.lesson is not None:
            self.now.lesson = under_way.lesson[0]
            self._curriculum.take_up(under_way.lesson[1])
        if under_way.anew:
            its.learner.go_back()
            course.spoilt.append(range(under_way.began, course.step))
        if self.now.lesson is not None and under_way.anew:
            self.now.lesson.batch = course.in_force.batch
            self._curriculum.again(self.now.lesson)
        self._curriculum.recognise(self.now.lesson)
        if self.now.buffer is not None:  # of a checkpoint that could not be taken up
            self.now.buffer.abandon()
        self.now.buffer = None if loaded.buffer is None else self._filled(loaded.buffer)

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
