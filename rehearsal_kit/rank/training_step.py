"""One training step of a rank, and what becomes of its task where no step can be taken.

    mini-batch ---> representatives ---> step over all ranks ---> offer, tell
                                           |             |
                              network or strategy     a loss that is not finite:
                              failed twice: the       back to where the task began,
                              task is set aside       and a person is waited for

Both are facts of the ledger: ranks that begin again obey them without computing the step. A GPU is given
some steps before the host looks at the first of them (`Learner.lag`); what is found of a step is a fact of
the step, or of the moment between two, at which it was looked at.
"""

from __future__ import annotations

import time

from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.summed_step import SummedStep
from rehearsal_kit.rank.checkpoint_takeup import Learning
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.rehearsal_step import RehearsalStep
from rehearsal_kit.rank.step_readings import StepReadings, Trouble
from rehearsal_kit.rank.task_lifecycle import TaskLifecycle
from rehearsal_kit.record.commands import StartedOver
from rehearsal_kit.record.records import Noted


class TrainingStep:
    """One rank's end; all ranks call it at the same step."""

    def __init__(
        self, context: RankContext, *, learning: Learning, rehearsing: RehearsalStep, lifecycle: TaskLifecycle
    ) -> None:
        self._with = context
        self._now = learning
        self._rehearsing = rehearsing
        self._lifecycle = lifecycle
        self._readings = StepReadings(context.learner, context.reporter)

    def take(self, loader: TaskLoader) -> bool:
        """Take the next step of a task; False where there was trouble and none was taken."""
        run_state = self._with.run_state
        self._with.reporter.state(run_state.step, "running")
        began = time.perf_counter()
        factor = self._with.spec.training.factor(
            loader.taken,
            steps=loader.steps,
            steps_per_epoch=loader.steps_per_epoch,
            ranks=self._with.groups.ranks,
        )
        new = loader.next()
        batch = self._rehearsing.augmented(new, loader.task)
        position = (run_state.branch, run_state.step + 1)
        if before := self._with.decisions.recorded_set_aside(position, loader.task):
            self._readings.look()
            self._give_up(loader, before, recorded=True)
            return False
        if before := self.recorded_start_over(loader):
            self._readings.look()
            self.start_over(loader, before)
            return False
        summed, found = self._launched(batch, factor, loader)
        if found is not None:
            self._deal_with(loader, found)
            return False
        self._rehearsing.offer(new, summed, loader)
        seconds = time.perf_counter() - began
        loader.spend(seconds)
        self._readings.spent(run_state.step, loader.task, seconds)
        run_state.stepped()
        return True

    def settle(self) -> None:
        """Look at every step that was launched, as something else is about to take effect; between two steps.

        What is found then is recorded as such: it comes after the mini-batch of the step before was offered.
        """
        if (found := self._readings.look()) is not None:
            assert self._now.loader is not None  # noqa: S101 - for the type checker; a task ends looked at
            self._deal_with(self._now.loader, found, between=True)

    def settle_as_before(self) -> None:
        """Do what was found here between two steps before."""
        loader, its = self._now.loader, self._with
        if loader is None:
            return
        position = its.run_state.position
        if before := its.decisions.recorded_set_aside(position, loader.task, between=True):
            self._readings.look()
            self._give_up(loader, before, recorded=True, between=True)
        elif before := its.decisions.recorded_start_over(position, loader.task, between=True):
            self._readings.look()
            self.start_over(loader, before, between=True)

    def recorded_start_over(self, loader: TaskLoader) -> str:
        """The trouble after which this task went back to its beginning here before; empty if it did not."""
        run_state = self._with.run_state
        position = (run_state.branch, run_state.step + 1)
        return self._with.decisions.recorded_start_over(position, loader.task)

    def trouble(self, loader: TaskLoader, why: str, *, guilty: bool = False, step: int | None = None) -> str:
        """What a person is told of numbers that are not finite; the same on every rank.

        step: in which they came; by default the next one.
        """
        step = self._with.run_state.step if step is None else step
        ranks = self._with.groups.where(guilty)
        experience = self._with.stream[loader.task]
        where = f"rank {', '.join(map(str, ranks))}" if ranks else "the sum over all ranks"
        return (
            f"task {loader.task} ({experience.name if experience is not None else ''}), "
            f"step {step}, {where}: {why}. Weights and optimizer are back where this "
            "task began, and nothing else is lost: lower the learning rate "
            f"({self._with.learner.training.learning_rate:g}) and resume, or stop."
        )

    def start_over(self, loader: TaskLoader, trouble: str, *, between: bool = False) -> None:
        """Go back to where the task began after a loss that is not finite, and wait for a person.

        The weights that made this loss may be spoilt already, so the step before is no place to go on from.
        between: whether that was found between two steps.
        """
        run_state = self._with.run_state
        if not between:
            run_state.stepped()  # all ranks have begun it; nothing of it is offered
        command = StartedOver(task=loader.task, reason=trouble, between=between)
        self._with.decisions.started_over(run_state.position, command)
        self._lifecycle.go_back(loader)
        self._lifecycle.again(loader)
        run_state.pause_by_itself(trouble)

    def _deal_with(self, loader: TaskLoader, found: Trouble, *, between: bool = False) -> None:
        stepped = found.stepped
        if stepped.failed:
            reason = self._with.decisions.agree(self._said(found))
            self._give_up(loader, reason, between=between)
            return
        trouble = self.trouble(loader, stepped.trouble, guilty=stepped.guilty, step=found.step)
        self.start_over(loader, trouble, between=between)

    def _launched(
        self, batch: MiniBatch, factor: float, loader: TaskLoader
    ) -> tuple[SummedStep, Trouble | None]:
        """One step, and the trouble of it, or of one before it that was not looked at yet.

        Tried once more where network or strategy failed on a rank, as they may for a moment; an error of the
        backward pass that is found some steps later is not.
        """
        its, run_state = self._with, self._with.run_state
        for last in (False, True):
            summed = its.learner.launch(
                batch,
                strategy=run_state.live_settings.strategy,
                factor=factor,
                seed=its.spec.seed,
                step=run_state.step,
            )
            self._readings.launched(run_state.step)
            # At once where the weights are about to be looked at themselves.
            looked_at = loader.done or its.evaluation.stability.looks_after(loader)
            found = self._readings.look(but=0 if summed.failed or looked_at else its.learner.lag)
            if last or found is None or not found.stepped.failed or found.step != run_state.step:
                break
            reason = its.decisions.agree(self._said(found))
            text = f"this step was taken once more after an error: {reason}"
            its.reporter.tell(Noted(step=run_state.step, text=text, time=time.time()))
        return summed, found

    def _said(self, found: Trouble) -> str:
        where = f"(rank {self._with.groups.rank}, at step {found.step})"
        return f"{found.stepped.error} {where}" if found.stepped.error else ""

    def _give_up(
        self, loader: TaskLoader, reason: str, *, recorded: bool = False, between: bool = False
    ) -> None:
        """Give a task up after an error of network or strategy on any rank: the next may well be trained."""
        self._with.reporter.flush()
        if not between:
            self._with.run_state.stepped()  # all ranks have begun it; nothing of it is offered
        self._lifecycle.give_up(loader, reason, recorded=recorded, between=between)
        self._now.loader = None
