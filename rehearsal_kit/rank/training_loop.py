"""One rank: the training loop, written out. A plain object that can run alone in one process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from safetensors.torch import save

from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.process_groups import Groups
from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.data.task_loader import Lesson
from rehearsal_kit.data.task_stream import Stream
from rehearsal_kit.learning.forward_pass import MiniBatch
from rehearsal_kit.learning.joint_step import Stepped
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.rank.checkpoint_loader import went_back_to
from rehearsal_kit.rank.checkpoint_takeup import Learning, TakingUp
from rehearsal_kit.rank.checkpoint_writer import Keeper
from rehearsal_kit.rank.command_handlers import Steering
from rehearsal_kit.rank.context import Equipment
from rehearsal_kit.rank.decisions import Control, Decision, Mailbox
from rehearsal_kit.rank.evaluation import Evaluation
from rehearsal_kit.rank.live_settings import InForce
from rehearsal_kit.rank.preview_upkeep import Showing
from rehearsal_kit.rank.previewer import Gallery
from rehearsal_kit.rank.rehearsal_step import RehearsalStep
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.rank.resumption import Resumption
from rehearsal_kit.rank.run_spec import Job, stored_identity
from rehearsal_kit.rank.run_state import Course
from rehearsal_kit.rank.task_lifecycle import Curriculum
from rehearsal_kit.record.commands import TakeCheckpoint, Wish
from rehearsal_kit.record.lease import LeaseWatch
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import Applied, Noted, Record
from rehearsal_kit.record.run_states import INTERRUPTED

IDLE_S = 0.02


class Rank:
    """Owns the loop; everything it calls is told what it needs.

    generation: which set of ranks of the run this one belongs to. A run folder with checkpoints is gone on
    with from the newest that all ranks can read. lease: token of the lease on the run folder; empty where
    nobody but this process can know of the folder.
    """

    def __init__(
        self,
        job: Job,
        groups: Groups,
        *,
        mailbox: Mailbox,
        publish: Callable[[Record, int | None], None],
        generation: int = 0,
        lease: str = "",
    ) -> None:
        self._job = job
        self._lease = LeaseWatch(job.run, lease)
        self._lease.require()
        self._groups = groups
        self._generation = generation
        identity = stored_identity(job.run)
        course = Course(InForce.of(job))
        self._course = course
        self._learner = Learner(job.network, job.training, device=job.device, groups=groups)
        control = Control(job.run, groups, mailbox)
        self._control = control
        self._reporter = Reporter(job.run, groups.rank, publish)
        self._stream = Stream(groups, seed=job.seed)
        self.gallery = Gallery(self._learner, self._stream, job.run.previews)
        """Previews; only rank 0 makes any."""
        equipment = Equipment(
            job=job,
            identity=identity,
            groups=groups,
            course=course,
            control=control,
            reporter=self._reporter,
            learner=self._learner,
            stream=self._stream,
            evaluation=Evaluation(
                self._learner,
                self._stream,
                groups=groups,
                reporter=self._reporter,
                earlier=job.training.evaluated,
            ),
            gallery=self.gallery,
            keeper=Keeper(
                job.run.checkpoints,
                job.recovery,
                groups,
                generation=generation,
                run=identity,
                lease=self._lease,
            ),
        )
        self._with = equipment
        if groups.rank == 0:  # which alone removes checkpoints
            equipment.keeper.pinned |= went_back_to(job.replays or job.run)
        self._curriculum = Curriculum(equipment)
        self._now = Learning(job.preparation)
        self._rehearsing = RehearsalStep(equipment, self._now, generation=generation)
        taking_up = TakingUp(equipment, self._curriculum, self._now)
        self._steering = Steering(equipment, self._curriculum, taking_up)
        self._resumption = Resumption(equipment, taking_up, self._steering.prepare)
        self._showing = Showing(self.gallery, self._reporter, rank=groups.rank)

    def run(self) -> str:
        """Train until the stream is finished, someone says stop, or a process of these ranks is about to end.

        Returns "finished", "stopped" or "interrupted".
        """
        with self._closing():
            self._begin()
            while self._goes_on():
                lesson = self._lesson()
                if lesson is None:
                    self._idle()
                    continue
                if not lesson.done:  # nobody has said that it is enough
                    self._train_step(lesson)
                if lesson.done and self._now.lesson is lesson:  # not where it was just given up
                    self._end_task(lesson)
            self._end()
        # Interrupted first: a run that had ended may have been about to be reopened.
        return INTERRUPTED if self._control.interrupted else self._course.outcome or "stopped"

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._course.step

    @property
    def beats(self) -> int:
        """Grows whenever this rank gets on with something; another thread watches it."""
        return self._control.decided + self._learner.calls + self._with.keeper.beats

    def give_up(self) -> None:
        """Fail at the next step boundary, without a vote; another thread may call."""
        self._control.given_up = True

    def interrupt(self) -> None:
        """Have all ranks end at their next step, with a checkpoint; for rank 0, any thread may call."""
        self._control.closing = True

    def fingerprint(self) -> str:
        """Of the weights."""
        return self._learner.fingerprint()

    def _lesson(self) -> Lesson | None:
        if self._course.paused:
            return None
        lesson = self._now.lesson or self._begin_task()
        return lesson if lesson is None or self._rehearsing.is_ready(lesson) else None

    # Beginning and end ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        joined = Joined(
            rank=self._groups.rank,
            ranks=self._groups.ranks,
            device=self._job.device,
            process=os.getpid(),
            time=time.time(),
            generation=self._generation,
        )
        self._reporter.tell_of_myself(joined)
        self._resumption.begin(generation=self._generation)
        self._reporter.branch = self._course.branch

    def _end(self) -> None:
        """The run has ended, or these ranks have: keep all that is not kept yet."""
        self._reporter.flush()
        course = self._course
        # Where effects are still to be followed, what is to be kept stands among them.
        following = self._control.follows or self._job.replays is not None
        ends_here = bool(course.outcome) and course.kept != course.outcome
        if (ends_here or (self._control.interrupted and not course.outcome)) and not following:
            self._apply(Wish(0, TakeCheckpoint()))
        if course.outcome:  # also where it was stopped in the middle of a task
            self._save_weights()
        self._with.keeper.close()
        self._tell_of_checkpoints()
        self._showing.close()

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # Pictures last: other ranks wait for this one, and the disk may not answer.
            self._with.keeper.abandon()
            if self._now.buffer is not None:
                self._now.buffer.abandon()
            self.gallery.abandon()
            raise
        else:
            if self._now.buffer is not None:
                self._now.buffer.close()
        finally:
            self._control.close()
            self._reporter.close()

    # One step -------------------------------------------------------------------------------------------

    def _train_step(self, lesson: Lesson) -> None:
        course = self._course
        self._reporter.state(course.step, "running")
        began = time.perf_counter()
        factor = self._job.training.factor(
            lesson.taken, steps=lesson.steps, steps_per_epoch=lesson.steps_per_epoch
        )
        new = lesson.next()
        batch = self._rehearsing.augmented(new)
        if before := self._control.recorded_set_aside((course.branch, course.step + 1), lesson.task):
            self._give_up(lesson, before, recorded=True)
            return
        stepped = self._stepped(batch, factor)
        if stepped.failed:
            self._give_up(lesson, self._control.agree(self._said(stepped)))
            return
        if stepped.trouble:
            self._start_over(lesson, stepped.trouble, guilty=stepped.guilty)
            return
        self._rehearsing.offer(new, stepped, lesson)
        seconds = time.perf_counter() - began
        lesson.seconds += seconds
        self._reporter.stepped(course.step, lesson.task, stepped=stepped, seconds=seconds)
        course.step += 1
        self._showing.refresh(course.begun - 1, step=course.step)

    def _stepped(self, batch: MiniBatch, factor: float) -> Stepped:
        """One step; tried once more where network or strategy failed on a rank, as they may for a moment."""
        course = self._course
        for last in (False, True):
            stepped = self._learner.step(
                batch,
                strategy=course.in_force.strategy,
                factor=factor,
                seed=torch_seed(self._job.seed, "forward", self._groups.rank, course.step),
            )
            if last or not stepped.failed:
                break
            reason = self._control.agree(self._said(stepped))
            text = f"this step was taken once more after an error: {reason}"
            self._reporter.tell(Noted(step=course.step, text=text, time=time.time()))
        return stepped

    def _said(self, stepped: Stepped) -> str:
        where = f"(rank {self._groups.rank}, at step {self._course.step})"
        return f"{stepped.error} {where}" if stepped.error else ""

    def _start_over(self, lesson: Lesson, trouble: str, *, guilty: bool = False) -> None:
        """After a loss that is not finite: back to where the task began, and wait for a person.

        The weights that made this loss may be spoilt already, so the step before is no place to go on from.
        """
        course = self._course
        ranks = [rank for rank, said in enumerate(self._groups.gather("1" if guilty else "")) if said]
        experience = self._stream[lesson.task]
        where = f"rank {', '.join(map(str, ranks))}" if ranks else "the sum over all ranks"
        course.trouble = (
            f"task {lesson.task} ({experience.name if experience is not None else ''}), step {course.step}, "
            f"{where}: {trouble}. Weights and optimizer are back where this task began, and nothing "
            f"else is lost: lower the learning rate ({self._learner.learning_rate:g}) and resume, or stop."
        )
        course.step += 1  # all ranks have begun it; nothing of it is offered
        self._curriculum.go_back(lesson)
        self._curriculum.again(lesson)
        course.paused = True

    def _give_up(self, lesson: Lesson, reason: str, *, recorded: bool = False) -> None:
        """After an error of network or strategy on any rank: the next task may well be trained."""
        self._reporter.flush()
        self._course.step += 1  # all ranks have begun it; nothing of it is offered
        self._curriculum.give_up(lesson, reason, recorded=recorded)
        self._now.lesson = None

    def _idle(self) -> None:
        course = self._course
        if course.outcome:
            return
        self._reporter.flush()
        paused = course.paused
        self._reporter.state(
            course.step, "paused" if paused else "waiting", reason=course.trouble if paused else ""
        )
        self._showing.refresh(course.begun - 1, step=course.step)
        if self._job.replays is None:
            time.sleep(IDLE_S)

    # Commands and tasks ---------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Apply what is to take effect before this step; whether there is more to do then."""
        course = self._course
        self._lease.look()
        branch, decided = -1, 1
        # Once more where another branch has begun, and after the end of the run, which may be reopened.
        while not self._control.interrupted and (branch != course.branch or (decided and course.outcome)):
            branch = course.branch
            decided = self._decide()
        if course.outcome and not self._control.interrupted:
            self._control.require_end(course.position)
        if self._control.interrupted or course.outcome:
            return False
        # A replay ends where the recorded run is now, or was cut off.
        return self._job.replays is None or not self._control.exhausted()

    def _decide(self) -> int:
        """How many decisions took effect before this step."""
        course, decided = self._course, 0
        due = self._job.replays is None and self._with.keeper.due(course.step)
        nothing_left = self._now.lesson is None and self._stream.next_from(course.begun) == len(self._stream)
        for decision in self._control.decide(
            course.position, self._steering.prepare, due=due, idle=course.paused or nothing_left
        ):
            self._acknowledge(decision)
            decided += 1
        self._tell_of_checkpoints()
        return decided

    def _apply(self, wish: Wish) -> None:
        """Carry out what all ranks have decided by themselves."""
        self._acknowledge(self._control.own(self._course.position, wish, self._steering.prepare))

    def _acknowledge(self, decision: Decision) -> None:
        course, wish, refused = self._course, decision.wish, decision.refused
        course.command = max(course.command, wish.number)
        self._reporter.tell_of_myself(
            Applied(
                rank=self._groups.rank,
                step=course.step,
                number=wish.number,
                kind=type(wish.command).__name__,
                settings=course.in_force.plain,
                digest=course.in_force.digest,
                refused=refused,
                remark=self._steering.take_remark(),
                holder=wish.holder,
            )
        )
        if refused and decision.again:
            kind = type(wish.command).__name__
            self._note(f"{kind}, which took effect on the branch that was left, cannot be now: {refused}")

    def _note(self, words: str) -> None:
        self._reporter.tell(Noted(step=self._course.step, text=words, time=time.time()))

    def _begin_task(self) -> Lesson | None:
        lesson = self._curriculum.begin()
        self._now.lesson = lesson
        if self._course.outcome:
            self._finish()
        return lesson

    def _finish(self) -> None:
        """All that has arrived is trained: evaluate what was not since, for the final tables."""
        evaluated = self._with.evaluation.last(step=self._course.step)
        self._showing.keep(evaluated, after=self._with.evaluation.newest, step=self._course.step)

    def _end_task(self, lesson: Lesson) -> None:
        evaluated = self._curriculum.end(lesson)
        if evaluated is None:
            self._start_over(lesson, "the network predicts numbers that are not finite")
            return
        self._showing.keep(evaluated, after=lesson.task, step=self._course.step)
        self._save_weights()
        self._now.lesson = None

    # Showing and keeping --------------------------------------------------------------------------------

    def _save_weights(self) -> None:
        if self._groups.rank == 0:
            write_private(self._job.run.weights, save(dict(self._learner.weights())))

    def _tell_of_checkpoints(self) -> None:
        for result in self._with.keeper.finished():
            self._reporter.tell(result)
