"""One rank: the training loop, written out. A plain object that can run alone in one process.

    run:  begin ---> goes on? ---> loader? ---> step ---------> end of the task? ---> end
             |           |            |           |                   |
             |       decisions    the task    take representatives,   evaluate,
       a checkpoint, at this step  under way,  train, offer, tell     write down
       if there is    boundary     or the next                        that it ended

Everything that another rank must do too happens at a step boundary, in the same order on all ranks. What this
loop calls lies beside it: `decisions`, `task_lifecycle`, `training_step`, `command_handlers`, `resumption`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from safetensors.torch import save

from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.learning.gpu_arithmetic import device_versions
from rehearsal_kit.rank.checkpoint_takeup import CheckpointTakeup, Learning
from rehearsal_kit.rank.command_handlers import CommandHandlers
from rehearsal_kit.rank.context import Publish, RankContext
from rehearsal_kit.rank.decisions import Decision
from rehearsal_kit.rank.mailbox import Mailbox
from rehearsal_kit.rank.preview_upkeep import PreviewUpkeep
from rehearsal_kit.rank.rehearsal_step import RehearsalStep
from rehearsal_kit.rank.resumption import Resumption
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.task_lifecycle import TaskLifecycle
from rehearsal_kit.rank.training_step import TrainingStep
from rehearsal_kit.record.commands import TakeCheckpoint, Wish
from rehearsal_kit.record.lease import LeaseWatch
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import Applied, Noted
from rehearsal_kit.record.run_states import INTERRUPTED, REGROUPED

IDLE_S = 0.02


def _nobody(error: BaseException) -> None:
    """Whoever calls `run` sees what it raises."""


class Rank:
    """Owns the loop; everything it calls is told what it needs.

    generation: which set of ranks of the run this one belongs to. A run folder with checkpoints is gone on
    with from the newest that all ranks can read. lease: token of the lease on the run folder; empty where
    nobody but this process can know of the folder.
    """

    def __init__(
        self,
        spec: RunSpec,
        groups: ProcessGroups,
        *,
        mailbox: Mailbox,
        publish: Publish,
        generation: int = 0,
        lease: str = "",
    ) -> None:
        lease_watch = LeaseWatch(spec.run, lease)
        lease_watch.require()
        context = RankContext.of(
            spec, groups, mailbox=mailbox, publish=publish, generation=generation, lease=lease_watch
        )
        self._with = context
        self._spec, self._groups = spec, groups
        self._run_state, self._decisions = context.run_state, context.decisions
        self._learner, self._stream, self._reporter = context.learner, context.stream, context.reporter
        self.previewer = context.previewer
        """Previews; only rank 0 makes any."""
        self._task_lifecycle = TaskLifecycle(context)
        self._now = Learning(spec.preparation)
        self._rehearsing = RehearsalStep(context, self._now)
        self._training_step = TrainingStep(
            context, learning=self._now, rehearsing=self._rehearsing, lifecycle=self._task_lifecycle
        )
        takeup = CheckpointTakeup(context, self._task_lifecycle, self._now)
        self._steering = CommandHandlers(context, self._task_lifecycle, takeup)
        self._resumption = Resumption(context, takeup, self._steering.prepare)
        self._preview_upkeep = PreviewUpkeep(self.previewer, self._reporter, rank=groups.rank)
        self._regroup_wanted = False

    def run(self, hear: Callable[[BaseException], None] = _nobody) -> str:
        """Train until the stream is finished, someone says stop, or a process of these ranks is about to end.

        Returns "finished", "stopped", "interrupted" or "regrouped". hear: is told of the error that ends it
        before threads of this rank are waited for, which may never end.
        """
        for _ in self.rounds(hear):
            pass
        # Interrupted first: a run that had ended may have been about to be reopened.
        return self._decisions.interrupted or self._run_state.outcome or "stopped"

    def rounds(self, hear: Callable[[BaseException], None] = _nobody) -> Iterator[None]:
        """The loop of `run`, for whoever has several ranks of one process train in turns, to measure them.

        It goes on whenever it is asked for the next: by what has been decided and, where there is something
        to train, one step. hear: as there.
        """
        with self._closing(hear):
            self._begin()
            while self._goes_on():
                self._take_round()
                yield
            self._end()

    def _take_round(self) -> None:
        loader = self._loader()
        if loader is None:
            self._idle()
            return
        if not loader.done:  # nobody has said that it is enough
            self._take_step(loader)
        if loader.done and self._now.loader is loader:  # not where it was just given up
            self._end_task(loader)

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._run_state.step

    @property
    def beats(self) -> int:
        """Grows whenever this rank gets on with something; another thread watches it."""
        return self._decisions.decided + self._learner.calls + self._with.checkpoint_writer.beats

    @property
    def buffer_places(self) -> tuple[int, ...]:
        """Where the rows of the buffer lie on each rank, as `row_placement` numbers it; else empty."""
        return () if self._now.buffer is None else self._now.buffer.placed

    def give_up(self) -> None:
        """Fail at the next step boundary, without a vote; another thread may call."""
        self._decisions.given_up = True

    def interrupt(self) -> None:
        """Have all ranks end at their next step, with a checkpoint; for rank 0, any thread may call."""
        self._decisions.closing = INTERRUPTED

    def regroup(self, wanted: bool) -> None:
        """Whether all ranks are to end at the next end of a task, with a checkpoint, so that more go on.

        For rank 0, any thread may call.
        """
        self._regroup_wanted = wanted

    def in_force(self) -> dict[str, Any]:
        """The `training` settings now, and how many `representatives` a step has."""
        live_settings = self._run_state.live_settings
        return {
            "training": live_settings.training,
            "representatives": live_settings.rehearsal.representatives,
        }

    def fingerprint(self) -> str:
        """Fingerprint of the weights."""
        return self._learner.state.fingerprint()

    def _loader(self) -> TaskLoader | None:
        if self._run_state.paused:
            return None
        loader = self._now.loader or self._begin_task()
        return loader if loader is None or self._rehearsing.is_ready(loader) else None

    # Beginning and end ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        joined = Joined(
            rank=self._groups.rank,
            ranks=self._groups.ranks,
            device=self._spec.device,
            process=os.getpid(),
            time=time.time(),
            generation=self._with.generation,
            versions=device_versions(self._spec.device),
        )
        self._reporter.tell_of_myself(joined)
        self._resumption.begin()
        self._reporter.branch = self._run_state.branch
        if words := self._run_state.live_settings.scaled(self._groups.ranks):
            self._note(words)

    def _end(self) -> None:
        """The run has ended, or these ranks have: keep all that is not kept yet."""
        self._reporter.flush()
        run_state = self._run_state
        # Where effects are still to be followed, what is to be kept stands among them.
        following = self._decisions.follows or self._spec.replays is not None
        ends_here = bool(run_state.outcome) and run_state.kept != run_state.outcome
        if (ends_here or (self._decisions.interrupted and not run_state.outcome)) and not following:
            self._apply(Wish(0, TakeCheckpoint()))
        if run_state.outcome:  # also where it was stopped in the middle of a task
            self._save_weights()
        self._with.checkpoint_writer.close()
        self._tell_of_checkpoints()
        self._preview_upkeep.close()

    @contextlib.contextmanager
    def _closing(self, hear: Callable[[BaseException], None]) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            hear(error)
            # Pictures last: other ranks wait for this one, and the disk may not answer.
            self._with.checkpoint_writer.abandon()
            if self._now.buffer is not None:
                self._now.buffer.abandon()
            self.previewer.abandon()
            raise
        else:
            if self._now.buffer is not None:
                self._now.buffer.close()
        finally:
            self._decisions.close()
            self._reporter.close()

    def _take_step(self, loader: TaskLoader) -> None:
        if self._training_step.take(loader):
            self._with.evaluation.stability.stepped(loader, step=self._run_state.step)
            self._preview_upkeep.refresh(self._run_state.begun - 1, step=self._run_state.step)

    def _idle(self) -> None:
        run_state = self._run_state
        if run_state.outcome:
            return
        self._reporter.flush()
        paused = run_state.paused
        self._reporter.state(
            run_state.step, "paused" if paused else "waiting", reason=run_state.trouble if paused else ""
        )
        self._preview_upkeep.refresh(run_state.begun - 1, step=run_state.step)
        if self._spec.replays is None:
            time.sleep(IDLE_S)

    # Commands and tasks ---------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Apply what is to take effect before this step; whether there is more to do then."""
        run_state = self._run_state
        self._with.lease.look()
        self._training_step.settle_as_before()
        branch, decided = -1, 1
        # Once more where another branch has begun, and after the end of the run, which may be reopened.
        while not self._decisions.interrupted and (
            branch != run_state.branch or (decided and run_state.outcome)
        ):
            branch = run_state.branch
            decided = self._decide()
        if run_state.outcome and not self._decisions.interrupted:
            self._decisions.require_end(run_state.position)
        if self._decisions.interrupted or run_state.outcome:
            return False
        # A replay ends where the recorded run is now, or was cut off.
        return self._spec.replays is None or not self._decisions.exhausted()

    def _decide(self) -> int:
        """How many decisions took effect before this step."""
        run_state, decided = self._run_state, 0
        due = self._spec.replays is None and self._with.checkpoint_writer.due(run_state.step)
        nothing_left = self._now.loader is None and self._stream.next_from(run_state.begun) == len(
            self._stream
        )
        if self._regroup_wanted and not self._decisions.closing and self._may_regroup(nothing_left):
            self._decisions.closing = REGROUPED
        for decision in self._decisions.decide(
            run_state.position,
            self._steering.prepare,
            settle=self._training_step.settle,
            due=due,
            idle=nothing_left,
            paused=run_state.paused,
        ):
            self._acknowledge(decision)
            decided += 1
        self._tell_of_checkpoints()
        return decided

    def _may_regroup(self, nothing_left: bool) -> bool:
        """Whether it lies between two tasks, with more to come, and all that it is would be kept."""
        ends = bool(self._run_state.outcome) or (self._run_state.finishing and nothing_left)
        return self._now.loader is None and not ends and not self._decisions.repeats

    def _apply(self, wish: Wish) -> None:
        """Carry out what all ranks have decided by themselves."""
        self._acknowledge(self._decisions.own(self._run_state.position, wish, self._steering.prepare))

    def _acknowledge(self, decision: Decision) -> None:
        run_state, wish, refused = self._run_state, decision.wish, decision.refused
        run_state.count_command(wish.number)
        self._reporter.tell_of_myself(
            Applied(
                rank=self._groups.rank,
                step=run_state.step,
                number=wish.number,
                kind=type(wish.command).__name__,
                settings=run_state.live_settings.plain,
                digest=run_state.live_settings.digest,
                batch=run_state.live_settings.sizes(self._groups.ranks).batch,
                refused=refused,
                remark=self._steering.take_remark(),
                holder=wish.holder,
                ranks=self._groups.ranks,
            )
        )
        if refused and decision.again:
            kind = type(wish.command).__name__
            self._note(f"{kind}, which took effect on the branch that was left, cannot be now: {refused}")

    def _note(self, words: str) -> None:
        self._reporter.tell(Noted(step=self._run_state.step, text=words, time=time.time()))

    def _begin_task(self) -> TaskLoader | None:
        loader = self._task_lifecycle.begin()
        self._now.loader = loader
        if self._run_state.outcome:
            self._finish()
        return loader

    def _finish(self) -> None:
        """All that has arrived is trained: evaluate what was not since, for the final tables."""
        evaluated = self._with.evaluation.last(step=self._run_state.step)
        self._preview_upkeep.keep(evaluated, after=self._with.evaluation.newest, step=self._run_state.step)

    def _end_task(self, loader: TaskLoader) -> None:
        before = self._training_step.recorded_start_over(loader)
        evaluated = self._task_lifecycle.end(loader, unsound=bool(before))
        if evaluated is None:
            why = "the network predicts numbers that are not finite"
            trouble = before or self._training_step.trouble(loader, why)
            self._training_step.start_over(loader, trouble)
            return
        self._preview_upkeep.keep(evaluated, after=loader.task, step=self._run_state.step)
        self._save_weights()
        self._now.loader = None

    # Showing and keeping --------------------------------------------------------------------------------

    def _save_weights(self) -> None:
        if self._groups.rank == 0:
            write_private(self._spec.run.weights, save(dict(self._learner.state.weights())))

    def _tell_of_checkpoints(self) -> None:
        for result in self._with.checkpoint_writer.finished():
            self._reporter.tell(result)
