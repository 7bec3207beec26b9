"""What one training step of a rank does with the rehearsal buffer: makes it, takes from it, offers to it."""

from __future__ import annotations

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.buffer.states import Representatives, Round
from rehearsal_kit.data.task_loader import Lesson
from rehearsal_kit.learning.forward_pass import MiniBatch
from rehearsal_kit.learning.joint_step import Stepped
from rehearsal_kit.learning.stored_outputs import ages, disowning, for_layout, without_outputs
from rehearsal_kit.rank.checkpoint_takeup import Learning
from rehearsal_kit.rank.context import Equipment
from rehearsal_kit.rank.decisions import said_before


class RehearsalStep:
    """One rank's end; all ranks call the same methods at the same step."""

    def __init__(self, equipment: Equipment, learning: Learning, *, generation: int) -> None:
        self._with = equipment
        self._now = learning
        self._generation = generation

    def is_ready(self, lesson: Lesson) -> bool:
        """Whether a step can be taken: the buffer is made where the settings in force need one.

        Where there is no room for it the run pauses, and waits for a person.
        """
        if self._now.buffer is not None or not self._with.course.in_force.needs_buffer:
            return True
        return self._is_made(lesson)

    def augmented(self, new: Samples) -> MiniBatch:
        """A mini-batch with the representatives of this step; begins the work for the next one."""
        drawn = self._take_representatives()
        if drawn is None:
            return MiniBatch(new, {}, {})
        # What was drawn before the strategy was changed is left out where the new one has no use for it.
        course, reporter = self._with.course, self._with.reporter
        strategy = course.in_force.strategy
        replayed = without_outputs(drawn.samples) if strategy.replays else {}
        distilled = disowning(drawn.distillation, course.spoilt) if strategy.distils else {}
        reporter.distilled(ages(distilled, course.step))
        return MiniBatch(new, replayed, distilled)

    def offer(self, new: Samples, stepped: Stepped, lesson: Lesson) -> None:
        """Hand over the mini-batch of this step, with its outputs where the buffer keeps them."""
        buffer = self._now.buffer
        if buffer is None:
            return
        group = lesson.task if lesson.group is None else new[lesson.group]
        stored = for_layout(new, stepped.outputs, layout=buffer.layout, version=self._with.course.step)
        buffer.offer(stored, group=group)

    def _take_representatives(self) -> Representatives | None:
        buffer, course = self._now.buffer, self._with.course
        if buffer is None:
            return None
        in_force = course.in_force
        waited, worked = buffer.waited, buffer.worked
        drawn = buffer.advance(
            Round(
                step=course.step,
                representatives=in_force.representatives,
                distillation=in_force.distillation,
                capacity=in_force.rehearsal.samples(buffer.layout.row_bytes),
                candidates=in_force.rehearsal.candidates,
                policy=in_force.rehearsal.policy,
                settings=int(in_force.digest[:15], 16),
                command=course.command,
                generation=self._generation,
                branch=course.branch,
            )
        )
        reporter = self._with.reporter
        reporter.buffer_worked(buffer.worked - worked, waited=buffer.waited - waited)
        if drawn is not None:
            reporter.held(drawn.stored)
            if in_force.strategy.replays:
                reporter.replayed(drawn)
        return drawn

    def _is_made(self, lesson: Lesson) -> bool:
        its, course, buffer, trouble = self._with, self._with.course, None, ""
        assert its.learner.signature is not None  # noqa: S101 - for the type checker; a task was met
        layout, rehearsal = course.in_force.stored(lesson.samples, its.learner.signature.no_outputs("cpu"))
        try:
            buffer = DistributedBuffer(
                layout,
                rehearsal,
                seed=its.job.seed,
                exchange=GroupExchange(its.groups),
                device=its.job.device,
            )
        except (SettingsError, MemoryError) as error:
            trouble = said_before(error, rank=its.groups.rank, step=course.step)
        reason = its.control.agree(trouble)
        if not reason:
            self._now.buffer = buffer
            return True
        if buffer is not None:
            buffer.close()
        course.trouble = (
            f"the rehearsal buffer cannot be made: {reason} Nothing is lost: steer(capacity=...), "
            "resume() and wait again, or stop."
        )
        course.paused = True
        return False
