"""Which task comes next: reads it, makes its loader, sets it aside, ends it."""

from __future__ import annotations

import json
import time

from rehearsal_kit.base.errors import SettingsError, said_before
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.buffer.row_layout import Samples, joined
from rehearsal_kit.data.experience import HELD_OUT
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.strategies.choice import require_classes
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.run_spec import keep_inputs
from rehearsal_kit.rank.task_loaders import new_loader
from rehearsal_kit.record.commands import SetAside, TaskDone
from rehearsal_kit.record.records import Noted, TaskBegan, TaskEnded, TaskSetAside

NOTHING_TO_TRAIN = "no training frame has any counts; was the shutter closed?"


class TaskLifecycle:
    """All ranks call the same methods at the same step."""

    def __init__(self, context: RankContext) -> None:
        self._with = context

    def begin(self) -> TaskLoader | None:
        """The next task's loader; None if there is none, or it had to be set aside."""
        its, run_state = self._with, self._with.run_state
        task = its.stream.next_from(run_state.begun)
        if task == len(its.stream):
            run_state.count_begun(task)
            if run_state.finishing:
                its.decisions.finished(run_state.position)
                run_state.change("Finished")
            return None
        run_state.count_begun(task + 1)
        for gone, why in its.decisions.recorded_set_asides(run_state.position).items():
            self._leave_out(gone, why)
        if its.stream[task] is None:
            return None
        loader, signature, reason = self._read(task)
        if loader is None or signature is None or reason:
            self.set_aside(task, reason or NOTHING_TO_TRAIN)
            return None
        if its.learner.signature is None:
            if not self._suits(signature, task):
                return None
            self._meet(signature, task)
        its.evaluation.before(task, step=run_state.step)
        its.learner.state.keep()  # what it goes back to where this task is given up
        if run_state.live_settings.strategy.restarts:
            its.learner.state.restart()
        its.reporter.tell(TaskBegan(step=run_state.step, task=task, steps=loader.steps, time=time.time()))
        return loader

    def set_aside(self, task: int, reason: str) -> None:
        """All ranks have agreed that this task is not to be trained, or not to be read any more."""
        self._record_aside(task, reason)
        self._leave_out(task, reason)

    def give_up(
        self, loader: TaskLoader, reason: str, *, recorded: bool = False, between: bool = False
    ) -> None:
        """Something of this task goes wrong in the middle: set it aside, as if it had never begun.

        Weights and optimizer go back to where it began; what it has put into the buffer stays. recorded:
        whether the ledger says so already. between: whether that was found between two steps.
        """
        self.go_back(loader)
        if not recorded:
            self._record_aside(loader.task, reason, between=between)
        self._leave_out(loader.task, reason, in_vain=True)

    def go_back(self, loader: TaskLoader) -> None:
        """Weights and optimizer as they were before the task."""
        self._with.run_state.take_back(loader.began)
        self._with.learner.state.go_back()

    def again(self, loader: TaskLoader) -> None:
        """Begin the task again at this step."""
        if self._with.run_state.live_settings.strategy.restarts:
            self._with.learner.state.restart()
        loader.again(self._with.run_state.step)

    def end(self, loader: TaskLoader, *, unsound: bool) -> list[int] | None:
        """Evaluate what a task has come to; returns which tasks were, None if predictions are not finite.

        unsound: whether they were not when this was recorded.
        """
        its, run_state = self._with, self._with.run_state
        its.reporter.flush()
        evaluated = its.evaluation.after(loader.task, step=run_state.step)
        if unsound or not its.evaluation.sound:
            return None
        its.evaluation.stability.ended(loader.task, step=run_state.step)
        weights = its.learner.state.fingerprint()
        its.decisions.task_done(run_state.position, TaskDone(task=loader.task, weights=weights))
        its.reporter.tell(
            TaskEnded(
                step=run_state.step,
                task=loader.task,
                seconds=loader.seconds,
                time=time.time(),
                weights=weights,
            )
        )
        return evaluated

    # Reading --------------------------------------------------------------------------------------------

    def _read(self, task: int) -> tuple[TaskLoader | None, Signature | None, str]:
        """A loader, once all that the task brings was seen to fit the run; or why not, on all ranks alike.

        Tasks before it that cannot be read any more are left out of it, and said.
        """
        its = self._with
        trouble, signature, lost = "", None, {}
        parts: dict[int, Samples] = {}
        try:
            signature, parts[task] = self._newest(task)
            lost = self._earlier(task, parts)
        except Exception as error:  # whatever is wrong with one task, the run must go on
            raise_of_device(error)
            trouble = said_before(error, rank=its.groups.rank, step=its.run_state.step)
        answers = [json.loads(text) for text in its.groups.gather(json.dumps([trouble, [*lost.items()]]))]
        reason = next((words for words, _ in answers if words), "")
        if signature is None or reason:
            return None, None, reason
        gone: dict[int, str] = {}
        for _, pairs in reversed(answers):
            gone |= dict(pairs)
        for earlier, why in sorted(gone.items()):
            self.set_aside(earlier, why)
        wanted = its.run_state.live_settings.strategy.tasks(task)
        tasks = [each for each in wanted if each in parts and each not in gone]
        known = joined([parts[each] for each in tasks])
        loader = new_loader(its, task, tasks, stream=its.stream, known=known)
        loader.measure(its.groups.max(loader.largest))
        return (loader if loader.largest else None), signature, ""

    def _newest(self, task: int) -> tuple[Signature, Samples]:
        its = self._with
        newest = its.stream.training_samples([task])
        signature = its.learner.signature or its.learner.meet(newest, its.stream.inputs(task))
        signature.require(newest, half=its.run_state.live_settings.rehearsal.half)
        for split in HELD_OUT:
            for batch in its.stream.held_out(task, split):
                signature.require(batch)
        return signature, newest

    def _earlier(self, task: int, parts: dict[int, Samples]) -> dict[int, str]:
        """Read into `parts` what else the strategy trains on; returns what cannot be read, and why."""
        its, lost = self._with, {}
        for earlier in its.run_state.live_settings.strategy.tasks(task):
            if earlier == task or its.stream[earlier] is None:
                continue
            try:
                parts[earlier] = its.stream.training_samples([earlier])
            except Exception as error:  # it was trained long ago; the others are there
                lost[earlier] = said_before(error, rank=its.groups.rank, step=its.run_state.step)
        return lost

    def _suits(self, signature: Signature, task: int) -> bool:
        """Whether the strategy can learn such a stream; else the run pauses, as no task of it is at fault."""
        try:
            require_classes(self._with.run_state.live_settings.strategy, signature)
        except SettingsError as error:
            self._with.run_state.count_begun(task)  # it is the next one still
            self._with.run_state.pause_by_itself(
                f"{error} Nothing is lost: steer(strategy=...), resume() and wait again, or stop."
            )
            return False
        return True

    def _meet(self, signature: Signature, task: int) -> None:
        its = self._with
        its.learner.know(signature)
        experience = its.stream[task]
        if its.groups.rank == 0 and experience is not None:
            keep_inputs(its.spec, experience, signature)

    def _record_aside(self, task: int, reason: str, *, between: bool = False) -> None:
        its = self._with
        arrived, _ = its.stream.arrivals[task]
        command = SetAside(name=arrived.name, path=arrived.path, reason=reason, task=task, between=between)
        its.decisions.set_aside(its.run_state.position, command)

    def tell_lost(self, task: int, reason: str, *, in_vain: bool = False) -> None:
        """Say of a task that arrived that it is left out from here on; in_vain: after a step begun for it."""
        its = self._with
        arrived, _ = its.stream.arrivals[task]
        if task in its.evaluation.trained:
            words = f"task {task} ({arrived.name}) was trained, but is not used any more: {reason}"
            its.reporter.tell(Noted(step=its.run_state.step, text=words, time=time.time()))
            return
        its.reporter.tell(
            TaskSetAside(
                step=its.run_state.step,
                name=arrived.name,
                path=arrived.path,
                reason=reason,
                task=task,
                in_vain=in_vain,
            )
        )

    def _leave_out(self, task: int, reason: str, *, in_vain: bool = False) -> None:
        self.tell_lost(task, reason, in_vain=in_vain)
        self._with.stream.set_aside(task)
