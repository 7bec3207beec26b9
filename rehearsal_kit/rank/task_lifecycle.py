"""Which task comes next: reads it, begins its lesson, sets it aside, ends it, takes one up again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rehearsal_kit.buffer.row_layout import IDENTITY, Samples
from rehearsal_kit.data.experience import HELD_OUT
from rehearsal_kit.data.task_loader import Lesson, dealt_out, first_left
from rehearsal_kit.data.task_stream import Stream
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.rank.context import Equipment
from rehearsal_kit.rank.decisions import said_before
from rehearsal_kit.rank.run_spec import keep_inputs
from rehearsal_kit.record.commands import SetAside, TaskDone
from rehearsal_kit.record.records import Noted, TaskBegan, TaskEnded, TaskSetAside

Dealings = list[tuple[int, int]]
"""Of an epoch: number of ranks, and samples per rank that were passed while there were so many."""
TakenUp = tuple[Lesson, Dealings]
"""A lesson in the middle, and how its epoch was dealt out before."""
NOTHING_TO_TRAIN = "no training frame has any counts; was the shutter closed?"


class Curriculum:
    """All ranks call the same methods at the same step."""

    def __init__(self, equipment: Equipment) -> None:
        self._with = equipment
        self._dealings: Dealings = []
        """Of the epoch under way, before the present one: empty unless a run went on with another number of
        ranks."""

    def begin(self) -> Lesson | None:
        """The next task's lesson; None if there is none, or it had to be set aside."""
        its, course = self._with, self._with.course
        task = its.stream.next_from(course.begun)
        if task == len(its.stream):
            course.begun = task
            if course.finishing:
                its.control.finished(course.position)
                course.change("Finished")
            return None
        course.begun = task + 1
        for gone, why in its.control.recorded_set_asides(course.position).items():
            self._leave_out(gone, why)
        if its.stream[task] is None:
            return None
        lesson, signature, reason = self._read(task)
        if lesson is None or signature is None or reason:
            self.set_aside(task, reason or NOTHING_TO_TRAIN)
            return None
        if its.learner.signature is None:
            self._meet(signature, task)
        its.evaluation.before(task, step=course.step)
        its.learner.keep()  # what it goes back to where this task is given up
        if course.in_force.strategy.restarts:
            its.learner.restart()
        self._dealings = []
        its.reporter.tell(TaskBegan(step=course.step, task=task, steps=lesson.steps, time=time.time()))
        return lesson

    def set_aside(self, task: int, reason: str) -> None:
        """All ranks have agreed that this task is not to be trained, or not to be read any more."""
        self._record_aside(task, reason)
        self._leave_out(task, reason)

    def give_up(self, lesson: Lesson, reason: str, *, recorded: bool = False) -> None:
        """Something of this task goes wrong in the middle: set it aside, as if it had never begun.

        Weights and optimizer go back to where it began; what it has put into the buffer stays. recorded:
        whether the ledger says so already.
        """
        self.go_back(lesson)
        if not recorded:
            self._record_aside(lesson.task, reason)
        self._leave_out(lesson.task, reason, in_vain=True)

    def go_back(self, lesson: Lesson) -> None:
        """Weights and optimizer as they were before the task."""
        course = self._with.course
        course.spoilt.append(range(lesson.began, course.step))
        self._with.learner.go_back()

    def again(self, lesson: Lesson) -> None:
        """Begin the task again at this step."""
        if self._with.course.in_force.strategy.restarts:
            self._with.learner.restart()
        lesson.again(self._with.course.step)

    def end(self, lesson: Lesson) -> list[int] | None:
        """Evaluate what a task has come to; returns which tasks were, None if predictions are not finite."""
        its, course = self._with, self._with.course
        its.reporter.flush()
        evaluated = its.evaluation.after(lesson.task, step=course.step)
        if not its.evaluation.sound:
            return None
        weights = its.learner.fingerprint()
        its.control.task_done(course.position, TaskDone(task=lesson.task, weights=weights))
        its.reporter.tell(
            TaskEnded(
                step=course.step, task=lesson.task, seconds=lesson.seconds, time=time.time(), weights=weights
            )
        )
        return evaluated

    # Checkpoints ----------------------------------------------------------------------------------------

    def to_plain(self, lesson: Lesson | None) -> dict[str, Any] | None:
        """Where in a task the run is."""
        if lesson is None:
            return None
        names = ("task", "batch", "began", "epoch", "place", "taken", "seconds", "largest")
        passed = lesson.place if lesson.rest is None else lesson.place - lesson.rest_begins
        dealings = [*(self._dealings if lesson.rest is not None else []), (self._with.groups.ranks, passed)]
        values = {name: getattr(lesson, name) for name in names}
        return {**values, "tasks": list(lesson.tasks), "dealings": dealings}

    def lesson_of(
        self, plain: Mapping[str, Any], stream: Stream, *, under_way: Lesson | None = None
    ) -> tuple[Lesson, list[tuple[int, int]]]:
        """The lesson that `to_plain` was told of; without asking the other ranks. For `take_up`.

        under_way: a lesson of the same stream; if it has the same tasks, its samples are not read again.

        Where it was begun on another number of ranks, what was left of the epoch is dealt out anew, so that
        every sample is still trained once. stream: the tasks in the order that was theirs then.
        """
        rank, ranks = self._with.groups.rank, self._with.groups.ranks
        dealings = [(int(count), int(passed)) for count, passed in plain["dealings"]]
        tasks = [int(task) for task in plain["tasks"]]
        same = under_way is not None and list(under_way.tasks) == tasks
        known = under_way.samples if under_way is not None and same else None
        lesson = self._lesson(int(plain["task"]), tasks, stream, known=known)
        lesson.largest = int(plain["largest"])
        for name in ("batch", "began", "epoch", "place", "taken", "seconds"):
            setattr(lesson, name, plain[name])
        if len(dealings) == 1 and dealings[0][0] == ranks:
            return lesson, []
        if dealings[-1][0] != ranks:
            dealings.append((ranks, 0))
        left = _left(lesson, stream, dealings[:-1])
        dealt = [stream.training_samples(tasks, of=(each, ranks)) for each in range(ranks)]
        lesson.largest = max(len(samples[IDENTITY]) for samples in dealt)
        places = dealt_out(len(left[IDENTITY]), ranks=ranks)
        lesson.rest = {name: tensor[places[rank]] for name, tensor in left.items()}
        lesson.rest_begins = lesson.largest - max(map(len, places))
        lesson.place = lesson.rest_begins + dealings[-1][1]
        if not len(left[IDENTITY]):
            lesson.epoch, lesson.place, lesson.rest = lesson.epoch + 1, 0, None
        return lesson, dealings[:-1]

    def lesson_anew(self, plain: Mapping[str, Any], stream: Stream) -> TakenUp:
        """That lesson from its first mini-batch on, without those of its tasks that are gone."""
        tasks = [int(task) for task in plain["tasks"] if stream[int(task)] is not None]
        lesson = self._lesson(int(plain["task"]), tasks, stream)
        lesson.seconds = float(plain["seconds"])
        return lesson, []

    def measure(self, lesson: Lesson) -> None:
        """Learn how long a lesson is: all ranks call this together."""
        lesson.largest = max(int(size) for size in self._with.groups.gather(str(lesson.largest)))

    def take_up(self, dealings: Dealings) -> None:
        """Go on with a lesson that `lesson_of` has made."""
        self._dealings = dealings

    # Reading --------------------------------------------------------------------------------------------

    def _read(self, task: int) -> tuple[Lesson | None, Signature | None, str]:
        """A lesson, once all that the task brings was seen to fit the run; or why not, on all ranks alike.

        Tasks before it that cannot be read any more are left out of it, and said.
        """
        its = self._with
        trouble, signature, lost = "", None, {}
        parts: dict[int, Samples] = {}
        try:
            signature, parts[task] = self._newest(task)
            lost = self._earlier(task, parts)
        except Exception as error:  # whatever is wrong with one task, the run must go on
            trouble = said_before(error, rank=its.groups.rank, step=its.course.step)
        answers = [json.loads(text) for text in its.groups.gather(json.dumps([trouble, [*lost.items()]]))]
        reason = next((words for words, _ in answers if words), "")
        if signature is None or reason:
            return None, None, reason
        gone: dict[int, str] = {}
        for _, pairs in reversed(answers):
            gone |= dict(pairs)
        for earlier, why in sorted(gone.items()):
            self.set_aside(earlier, why)
        wanted = its.course.in_force.strategy.tasks(task)
        tasks = [each for each in wanted if each in parts and each not in gone]
        lesson = self._lesson(task, tasks, its.stream, known=_together([parts[each] for each in tasks]))
        self.measure(lesson)
        return (lesson if lesson.largest else None), signature, ""

    def _newest(self, task: int) -> tuple[Signature, Samples]:
        its = self._with
        newest = its.stream.training_samples([task])
        signature = its.learner.signature or its.learner.meet(newest, its.stream.inputs(task))
        signature.require(newest, half=its.course.in_force.rehearsal.half)
        for split in HELD_OUT:
            for batch in its.stream.held_out(task, split):
                signature.require(batch)
        return signature, newest

    def _earlier(self, task: int, parts: dict[int, Samples]) -> dict[int, str]:
        """Read into `parts` what else the strategy trains on; returns what cannot be read, and why."""
        its, lost = self._with, {}
        for earlier in its.course.in_force.strategy.tasks(task):
            if earlier == task or its.stream[earlier] is None:
                continue
            try:
                parts[earlier] = its.stream.training_samples([earlier])
            except Exception as error:  # it was trained long ago; the others are there
                lost[earlier] = said_before(error, rank=its.groups.rank, step=its.course.step)
        return lost

    def _lesson(
        self, task: int, tasks: Sequence[int], stream: Stream, *, known: Samples | None = None
    ) -> Lesson:
        its = self._with
        samples = stream.training_samples(tasks) if known is None else known
        experience = stream[task]
        return Lesson(
            task=task,
            tasks=tasks,
            samples=samples,
            largest=len(samples[IDENTITY]),
            epochs=its.job.training.epochs,
            batch=its.course.in_force.batch,
            key=(its.job.seed, its.groups.rank),
            began=its.course.step,
            group=None if experience is None else experience.group,
        )

    def _meet(self, signature: Signature, task: int) -> None:
        its = self._with
        its.learner.signature = signature
        experience = its.stream[task]
        if its.groups.rank == 0 and experience is not None:
            keep_inputs(its.job, experience, signature)

    def _record_aside(self, task: int, reason: str) -> None:
        its = self._with
        arrived, _ = its.stream.arrivals[task]
        command = SetAside(name=arrived.name, path=arrived.path, reason=reason, task=task)
        its.control.set_aside(its.course.position, command)

    def tell_lost(self, task: int, reason: str, *, in_vain: bool = False) -> None:
        """Say of a task that arrived that it is left out from here on; in_vain: after a step begun for it."""
        its = self._with
        arrived, _ = its.stream.arrivals[task]
        if task in {trained for trained, _ in its.evaluation.to_plain()["seen"]}:
            words = f"task {task} ({arrived.name}) was trained, but is not used any more: {reason}"
            its.reporter.tell(Noted(step=its.course.step, text=words, time=time.time()))
            return
        its.reporter.tell(
            TaskSetAside(
                step=its.course.step,
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


def _together(parts: Sequence[Samples]) -> Samples:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _left(lesson: Lesson, stream: Stream, dealings: Sequence[tuple[int, int]]) -> Samples:
    """What is left of an epoch that was dealt out like this, in the order in which it was left."""
    ranks, passed = dealings[0]
    parts = []
    for rank in range(ranks):
        samples = stream.training_samples(lesson.tasks, of=(rank, ranks))
        begun = replace(lesson, samples=samples, key=(lesson.key[0], rank), place=passed, _order=None)
        chosen = begun.left()
        parts.append({name: tensor[chosen] for name, tensor in samples.items()})
    left = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for ranks, passed in dealings[1:]:
        rows = [part[first_left(len(part), passed) :] for part in dealt_out(len(left[IDENTITY]), ranks=ranks)]
        left = {name: tensor[torch.cat(rows)] for name, tensor in left.items()}
    return left
