"""One training step of a rank, and what becomes of its task where no step can be taken.

    mini-batch ---> representatives ---> step over all ranks ---> offer, tell
                                           |             |
                              network or strategy     a loss that is not finite:
                              failed twice: the       back to where the task began,
                              task is set aside       and a person is waited for

Both are facts of the ledger: ranks that begin again obey them without computing the step.
"""

from __future__ import annotations

import time

from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.summed_step import Stepped
from rehearsal_kit.rank.checkpoint_takeup import Learning
from rehearsal_kit.rank.context import RankContext
from rehearsal_kit.rank.rehearsal_step import RehearsalStep
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
            self._give_up(loader, before, recorded=True)
            return False
        if before := self.recorded_start_over(loader):
            self.start_over(loader, before)
            return False
        stepped = self._stepped(batch, factor)
        if stepped.failed:
            self._give_up(loader, self._with.decisions.agree(self._said(stepped)))
            return False
        if stepped.trouble:
            self.start_over(loader, self.trouble(loader, stepped.trouble, guilty=stepped.guilty))
            return False
        self._rehearsing.offer(new, stepped, loader)
        seconds = time.perf_counter() - began
        loader.spend(seconds)
        self._with.reporter.stepped(run_state.step, loader.task, stepped=stepped, seconds=seconds)
        run_state.stepped()
        return True

    def recorded_start_over(self, loader: TaskLoader) -> str:
        """The trouble after which this task went back to its beginning here before; empty if it did not."""
        run_state = self._with.run_state
        position = (run_state.branch, run_state.step + 1)
        return self._with.decisions.recorded_start_over(position, loader.task)

    def trouble(self, loader: TaskLoader, why: str, *, guilty: bool = False) -> str:
        """What a person is told of numbers that are not finite; the same on every rank."""
        ranks = self._with.groups.where(guilty)
        experience = self._with.stream[loader.task]
        where = f"rank {', '.join(map(str, ranks))}" if ranks else "the sum over all ranks"
        return (
            f"task {loader.task} ({experience.name if experience is not None else ''}), "
            f"step {self._with.run_state.step}, {where}: {why}. Weights and optimizer are back where this "
            "task began, and nothing else is lost: lower the learning rate "
            f"({self._with.learner.training.learning_rate:g}) and resume, or stop."
        )

    def start_over(self, loader: TaskLoader, trouble: str) -> None:
        """Go back to where the task began after a loss that is not finite, and wait for a person.

        The weights that made this loss may be spoilt already, so the step before is no place to go on from.
        """
        run_state = self._with.run_state
        run_state.stepped()  # all ranks have begun it; nothing of it is offered
        command = StartedOver(task=loader.task, reason=trouble)
        self._with.decisions.started_over(run_state.position, command)
        self._lifecycle.go_back(loader)
        self._lifecycle.again(loader)
        run_state.pause_by_itself(trouble)

    def _stepped(self, batch: MiniBatch, factor: float) -> Stepped:
        """One step; tried once more where network or strategy failed on a rank, as they may for a moment."""
        run_state = self._with.run_state
        for last in (False, True):
            stepped = self._with.learner.step(
                batch,
                strategy=run_state.live_settings.strategy,
                factor=factor,
                seed=torch_seed(self._with.spec.seed, "forward", self._with.groups.rank, run_state.step),
            )
            if last or not stepped.failed:
                break
            reason = self._with.decisions.agree(self._said(stepped))
            text = f"this step was taken once more after an error: {reason}"
            self._with.reporter.tell(Noted(step=run_state.step, text=text, time=time.time()))
        return stepped

    def _said(self, stepped: Stepped) -> str:
        where = f"(rank {self._with.groups.rank}, at step {self._with.run_state.step})"
        return f"{stepped.error} {where}" if stepped.error else ""

    def _give_up(self, loader: TaskLoader, reason: str, *, recorded: bool = False) -> None:
        """Give a task up after an error of network or strategy on any rank: the next may well be trained."""
        self._with.reporter.flush()
        self._with.run_state.stepped()  # all ranks have begun it; nothing of it is offered
        self._lifecycle.give_up(loader, reason, recorded=recorded)
        self._now.loader = None
