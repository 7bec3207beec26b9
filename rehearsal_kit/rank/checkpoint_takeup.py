"""Going on from a checkpoint: weights, buffer, tasks, the one under way, as far as they are still there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rehearsal_kit.base.errors import CheckpointError, RehearsalKitError, said_before
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.plain_values import with_tuples
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.states import BufferState
from rehearsal_kit.data.open_experience import ArrivedExperience, Shelf
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.rank.checkpoint_loader import LoadedCheckpoint
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.rank.task_lifecycle import TaskLifecycle
from rehearsal_kit.rank.task_loaders import UnfinishedTask, unfinished_task
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.record.records import UNTRAINED


@dataclass(frozen=True)
class Ready:
    """A checkpoint that can be taken up, as far as one rank can tell."""

    loaded: LoadedCheckpoint
    run_state: RunState
    preparation: Preparation
    stream: TaskStream
    """Its tasks in their order then; their files are opened when something of them is asked for."""


@dataclass
class Learning:
    """What a rank is in the middle of."""

    preparation: Preparation
    """Preparation of scans that arrive; fitted by the first of them."""
    loader: TaskLoader | None = None
    buffer: DistributedBuffer | None = None


class CheckpointTakeup:
    """One rank's way back to a checkpoint; the same on all ranks."""

    def __init__(self, context: RankContext, task_lifecycle: TaskLifecycle, learning: Learning) -> None:
        self._with = context
        self._task_lifecycle = task_lifecycle
        self.now = learning
        self.shelf = Shelf()

    def found(self, arrived: Arrived) -> Arrived:
        """What arrived, with the whole path of its file, which may lie in the run folder."""
        return replace(arrived, path=self._with.spec.run.find(arrived.path))

    def ready(self, loaded: LoadedCheckpoint) -> Ready:
        """All that a checkpoint says, read and understood; changes nothing, and does not ask the other ranks.

        Raises whatever comes of a state that is not one; no file of a task is opened.
        """
        its, state = self._with, loaded.state
        preparation = Preparation(**with_tuples(state["preparation"]))
        stream = TaskStream(its.groups, seed=its.spec.seed)
        for plain, aside in state["stream"]:
            arrived = Arrived(**with_tuples(plain))
            known = None if aside else self.shelf.known(self.found(arrived), preparation)
            stream.append(arrived, known)
        stream.arrived_as(state["order"])
        if its.spec.seed != state["seed"]:
            raise CheckpointError(f"it is of a run with seed {state['seed']}, this one has {its.spec.seed}.")
        there = RunState.from_plain(state["course"], LiveSettings.of(its.spec))
        return Ready(loaded, there, preparation, stream)

    def gone(self, ready: Ready, tasks: Iterable[int] | None = None) -> dict[int, str]:
        """Which of these tasks, by default all still trained there, this rank cannot read now, and why."""
        gone: dict[int, str] = {}
        waiting = range(ready.run_state.begun, len(ready.stream))
        for task in (*_loader_tasks(ready.loaded.state), *waiting) if tasks is None else tasks:
            experience = ready.stream[task]
            try:
                if isinstance(experience, ArrivedExperience):
                    experience.require_unchanged()
            except RehearsalKitError as error:
                gone[task] = said_before(error, rank=self._with.groups.rank, step=ready.run_state.step)
        return gone

    def unreadable(self, ready: Ready) -> dict[int, str]:
        """Which tasks of the loader under way there are as they arrived and cannot be read all the same."""
        found: dict[int, str] = {}
        for task in _loader_tasks(ready.loaded.state):
            try:
                if ready.stream[task] is not None:
                    ready.stream.training_samples([task])
            except Exception as error:  # whatever is wrong with one file, the others may be well
                raise_of_device(error)
                found[task] = said_before(error, rank=self._with.groups.rank, step=ready.run_state.step)
        return found

    def take_up(self, ready: Ready, lost: Iterable[int]) -> None:
        """Go on where a checkpoint was taken, before the first step of this rank.

        lost: tasks that some rank cannot read any more, the same on all ranks. Where the task under way is
        one of them, weights and optimizer are back where it began.
        """
        its = self._with
        for task in lost:
            ready.stream.set_aside(task)
        its.run_state.restart(ready.run_state)
        self.now.preparation = ready.preparation
        its.stream.become(ready.stream)
        self.adopt(ready.loaded, self.under_way(ready.loaded, its.stream))

    def settle(self) -> None:
        """Learn how long a task begun anew is, after a checkpoint was taken up, on all ranks alike."""
        if self.now.loader is not None and not self.now.loader.taken:
            self.now.loader.measure(self._with.groups.max(self.now.loader.largest))

    def forget(self) -> None:
        """Be as before the first step, whatever of a checkpoint was taken up."""
        its = self._with
        its.run_state.restart(RunState(LiveSettings.of(its.spec)))
        its.stream.become(TaskStream(its.groups, seed=its.spec.seed))
        its.learner.state.restart()
        its.learner.know(None)
        its.learner.steer(its.run_state.live_settings.training)
        its.evaluation.restore({"newest": UNTRAINED, "seen": [], "errors": []})
        self.now.preparation, self.now.loader = its.spec.preparation, None
        if self.now.buffer is not None:
            self.now.buffer.abandon()
            self.now.buffer = None

    def under_way(
        self, loaded: LoadedCheckpoint, stream: TaskStream, *, now: TaskLoader | None = None
    ) -> UnfinishedTask:
        """The task that a checkpoint was taken in the middle of; stream: its tasks in their order then.

        now: what is under way; if it is made of the same tasks, its samples are not read again.
        """
        return unfinished_task(self._with, loaded.state["lesson"], stream, under_way=now)

    def adopt(self, loaded: LoadedCheckpoint, under_way: UnfinishedTask) -> None:
        """Be what was learned there; the course is there already."""
        its, run_state = self._with, self._with.run_state
        its.learner.state.adopt(loaded.tensors)
        known = loaded.state["signature"]
        its.learner.know(None if known is None else Signature.from_plain(known))
        its.learner.steer(run_state.live_settings.training)
        its.evaluation.restore(loaded.state["evaluation"])
        self.now.loader = under_way.loader
        if under_way.anew:
            its.learner.state.go_back()
            run_state.take_back(under_way.began)
        if self.now.loader is not None:
            self.now.loader.resize(run_state.live_settings.sizes(its.groups.ranks).batch)
            if under_way.anew:
                self._task_lifecycle.again(self.now.loader)
        if self.now.buffer is not None:  # of a checkpoint that could not be taken up
            self.now.buffer.abandon()
        self.now.buffer = None if loaded.buffer is None else self._filled(loaded.buffer)

    def _filled(self, state: BufferState) -> DistributedBuffer:
        its = self._with
        half = tuple(field.name for field in state.layout.fields if field.half)
        live_settings = its.run_state.live_settings.rehearsal
        # What is steered takes effect in the next round: until then the store is as large as it was.
        capacity = max(state.capacity, live_settings.samples(state.layout.row_bytes))
        settings = replace(live_settings, policy=state.policy, half=half, capacity=capacity)
        buffer = DistributedBuffer(
            state.layout,
            settings,
            seed=its.spec.seed,
            exchange=GroupExchange(its.groups),
            device=its.buffer_device,
        )
        buffer.restore(state)
        return buffer


def arrivals_to_train(state: Mapping[str, Any], since: Iterable[Arrived] = ()) -> list[Arrived]:
    """The tasks that are still to be trained by the state of a checkpoint, the one under way among them.

    since: tasks of a later moment. Those that the checkpoint does not know stay where a run is rolled back to
    it, and are trained after.
    """
    stream = [(Arrived(**with_tuples(plain)), aside) for plain, aside in state["stream"]]
    tasks = (*_loader_tasks(state), *range(int(state["course"]["begun"]), len(stream)))
    known = {arrived.path for arrived, aside in stream if not aside}
    return [
        *(stream[task][0] for task in tasks if not stream[task][1]),
        *(arrived for arrived in since if arrived.path not in known),
    ]


def _loader_tasks(state: Mapping[str, Any]) -> list[int]:
    """All that the task under way is trained with; none between two tasks."""
    plain = state.get("lesson")
    return [] if plain is None else [int(task) for task in plain["tasks"]]
