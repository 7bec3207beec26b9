"""What one training step of a rank does with the rehearsal buffer: makes it, takes from it, offers to it."""

from __future__ import annotations

import time
from dataclasses import replace

from rehearsal_kit.base.digests import number_of
from rehearsal_kit.base.errors import SettingsError, said_before
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.buffer.states import Representatives, Round
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.stored_outputs import ages, disowning, for_layout
from rehearsal_kit.learning.summed_step import SummedStep
from rehearsal_kit.rank.buffer_places import said_of_places
from rehearsal_kit.rank.checkpoint_takeup import Learning
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.record.records import Noted


class RehearsalStep:
    """One rank's end; all ranks call the same methods at the same step."""

    def __init__(self, context: RankContext, learning: Learning) -> None:
        self._with = context
        self._now = learning
        self._said = ""
        """Where the rows of the buffer lie, as it was told last."""
        self._waited = 0.0
        """That the step under way has waited for the buffer, beside what it waited for representatives."""

    def is_ready(self, loader: TaskLoader) -> bool:
        """Whether a step can be taken: the buffer is made where the settings in force need one.

        Where there is no room for it the run pauses, and waits for a person.
        """
        if self._now.buffer is not None or not self._with.run_state.live_settings.needs_buffer:
            return True
        return self._is_made(loader)

    def augmented(self, new: Samples, task: int) -> MiniBatch:
        """A mini-batch of a task with the representatives of this step; begins the work for the next one."""
        drawn, tasks = self._take_representatives(), self._with.stream.count_until(task)
        if drawn is None:
            return MiniBatch(new, {}, {}, tasks)
        run_state, reporter = self._with.run_state, self._with.reporter
        strategy, spoilt = run_state.live_settings.strategy, run_state.spoilt
        draws = zip((drawn.samples, drawn.distillation), drawn.numbers, strict=True)
        first, again = (disowning(samples, numbers, spoilt) for samples, numbers in draws)
        batch = MiniBatch.augmented(new, first, again, strategy=strategy)
        reporter.distilled(ages(batch.compared, run_state.step))
        asks_losses = run_state.live_settings.rehearsal.removal == "loss"
        return replace(batch, tasks=tasks, asks_losses=asks_losses)

    def offer(self, new: Samples, stepped: SummedStep, loader: TaskLoader) -> None:
        """Hand over the mini-batch of this step, with its outputs where the buffer keeps them."""
        buffer = self._now.buffer
        if buffer is None:
            return
        stored = for_layout(new, stepped.outputs, layout=buffer.layout, version=self._with.run_state.step)
        waited = buffer.waited
        # Nobody writes to the mini-batch of a step that was taken.
        buffer.offer(stored, group=loader.groups, losses=stepped.replayed, copy=False)
        self._waited = buffer.waited - waited

    def _take_representatives(self) -> Representatives | None:
        buffer, run_state = self._now.buffer, self._with.run_state
        if buffer is None:
            return None
        live_settings = run_state.live_settings
        sizes = live_settings.sizes(self._with.groups.ranks)
        waited, worked = buffer.waited - self._waited, buffer.worked
        self._waited = 0.0
        drawn = buffer.advance(
            Round(
                step=run_state.step,
                representatives=sizes.representatives,
                distillation=sizes.distillation,
                fewer=sizes.fewer,
                capacity=live_settings.rehearsal.samples(buffer.layout.row_bytes),
                candidates=sizes.candidates,
                policy=live_settings.rehearsal.policy,
                settings=number_of(live_settings.digest),
                command=run_state.command,
                generation=self._with.generation,
                branch=run_state.branch,
            )
        )
        reporter = self._with.reporter
        reporter.buffer_worked(buffer.worked - worked, waited=buffer.waited - waited)
        self._tell_places(buffer)
        if drawn is not None:
            reporter.held(drawn.stored)
            if live_settings.strategy.replays:
                reporter.replayed(drawn)
        return drawn

    def _tell_places(self, buffer: DistributedBuffer) -> None:
        """Say where the rows of all ranks lie, once they have decided it and whenever that changes."""
        its, words = self._with, said_of_places(buffer.placed, buffer.share_bytes)
        if words and words != self._said:
            self._said = words
            its.reporter.tell(Noted(step=its.run_state.step, text=words, time=time.time()))

    def _is_made(self, loader: TaskLoader) -> bool:
        its, run_state, buffer, trouble = self._with, self._with.run_state, None, ""
        assert its.learner.signature is not None  # noqa: S101 - for the type checker; a task was met
        layout, rehearsal = run_state.live_settings.stored(
            loader.shard.none, its.learner.signature.no_outputs("cpu")
        )
        try:
            buffer = DistributedBuffer(
                layout,
                rehearsal,
                seed=its.spec.seed,
                exchange=GroupExchange(its.groups),
                device=its.buffer_device,
            )
        except (SettingsError, MemoryError) as error:
            trouble = said_before(error, rank=its.groups.rank, step=run_state.step)
        reason = its.decisions.agree(trouble)
        if not reason:
            self._now.buffer = buffer
            return True
        if buffer is not None:
            buffer.close()
        run_state.pause_by_itself(
            f"the rehearsal buffer cannot be made: {reason} Nothing is lost: steer(capacity=...), "
            "resume() and wait again, or stop."
        )
        return False
