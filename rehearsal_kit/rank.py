"""One rank: the training loop, written out. A plain object that can run alone in one process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from safetensors.torch import save

from rehearsal_kit.commands import TakeCheckpoint, Wish
from rehearsal_kit.control import Control, Mailbox, said
from rehearsal_kit.course import Course
from rehearsal_kit.curriculum import Curriculum
from rehearsal_kit.equipment import Equipment
from rehearsal_kit.errors import SettingsError
from rehearsal_kit.evaluation import Evaluation
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.forward_pass import MiniBatch
from rehearsal_kit.gallery import Gallery
from rehearsal_kit.groups import Groups
from rehearsal_kit.in_force import InForce
from rehearsal_kit.job import Job
from rehearsal_kit.joint_step import Stepped
from rehearsal_kit.keeper import Keeper
from rehearsal_kit.layout import Samples
from rehearsal_kit.learner import Learner
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.randomness import torch_seed
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.reporter import Reporter
from rehearsal_kit.restoring import Beginning, find_beginning, recorded_script, went_back_to
from rehearsal_kit.rounds import Representatives, Round
from rehearsal_kit.run_folder import write_private
from rehearsal_kit.steering import Learning, Steering
from rehearsal_kit.stored_outputs import ages, disowning, for_layout, without_outputs
from rehearsal_kit.stream import Stream
from rehearsal_kit.telemetry import Applied, CheckpointFailed, Joined, Noted, Record, Restored

IDLE_S = 0.02


class Rank:
    """Owns the loop; everything it calls is told what it needs.

    generation: which set of ranks of the run this one belongs to. A run folder with checkpoints is gone on
    with from the newest that all ranks can read.
    """

    def __init__(
        self,
        job: Job,
        groups: Groups,
        *,
        mailbox: Mailbox,
        publish: Callable[[Record, int | None], None],
        generation: int = 0,
    ) -> None:
        self._job = job
        self._groups = groups
        self._generation = generation
        first = InForce.of(job)
        beginning = (
            find_beginning(job.run, groups)
            if job.replays is None
            else Beginning(None, recorded_script(job.replays), ())
        )
        loaded, script = beginning.loaded, beginning.script
        course = Course.from_plain(loaded.state["course"], first) if loaded is not None else Course(first)
        self._course = course
        self._learner = Learner(job.network, job.training, device=job.device, groups=groups)
        control = Control(job.run, groups, mailbox, script=script if groups.rank == 0 else None)
        self._control = control
        self._reporter = Reporter(job.run, groups.rank, publish, again=True)
        self._stream = Stream(groups, seed=job.seed)
        self.gallery = Gallery(self._learner, self._stream)
        """Previews; only rank 0 makes any."""
        equipment = Equipment(
            job=job,
            groups=groups,
            course=course,
            control=control,
            reporter=self._reporter,
            learner=self._learner,
            stream=self._stream,
            evaluation=Evaluation(
                self._learner, self._stream, reporter=self._reporter, earlier=job.training.evaluated
            ),
            gallery=self.gallery,
            keeper=Keeper(job.run.checkpoints, job.recovery, groups, generation=generation),
        )
        self._with = equipment
        equipment.keeper.pinned |= went_back_to(job.replays or job.run)
        self._reporter.branch = course.branch
        self._curriculum = Curriculum(equipment)
        self._now = Learning()
        self._steering = Steering(equipment, self._curriculum, self._now)
        self._beginning = beginning

    def run(self) -> str:
        """Train until the stream is finished or someone says stop; returns "finished" or "stopped"."""
        with self._closing():
            self._begin()
            while self._goes_on():
                lesson = self._lesson()
                if lesson is None:
                    self._idle()
                    continue
                if not lesson.done:  # nobody has said that it is enough
                    self._train_step(lesson)
                if lesson.done:
                    self._end_task(lesson)
            self._end()
        return self._course.outcome

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._course.step

    @property
    def beats(self) -> int:
        """Grows whenever this rank gets on with something; another thread watches it."""
        return self._control.decided + self._learner.calls

    def give_up(self) -> None:
        """Fail at the next step boundary, without a vote; another thread may call."""
        self._control.given_up = True

    def fingerprint(self) -> str:
        """Of the weights."""
        return self._learner.fingerprint()

    def _lesson(self) -> Lesson | None:
        if self._course.paused:
            return None
        lesson = self._now.lesson or self._curriculum.begin()
        self._now.lesson = lesson
        missing = self._now.buffer is None and self._course.in_force.needs_buffer
        return None if lesson is not None and missing and not self._buffer_made(lesson) else lesson

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
        for number, reason in self._beginning.refused:
            self._reporter.tell(CheckpointFailed(checkpoint=number, reason=reason))
        loaded = self._beginning.loaded
        if loaded is not None:
            self._steering.take_up(loaded)
        if loaded is not None or self._generation > 1:
            number = 0 if loaded is None else loaded.number
            self._reporter.tell(
                Restored(
                    step=self._course.step, checkpoint=number, generation=self._generation, time=time.time()
                )
            )

    def _end(self) -> None:
        self._reporter.flush()
        evaluation, course = self._with.evaluation, self._course
        if course.outcome == "finished":
            evaluated = evaluation.last(step=course.step)
            if self._groups.rank == 0:
                self.gallery.keep(
                    self._job.run.previews, evaluated, after=evaluation.newest, step=course.step
                )
        if self._job.replays is None:  # a replay takes those that were recorded
            self._apply(Wish(0, TakeCheckpoint()))
        self._save_weights()  # also where it was stopped in the middle of a task
        self._with.keeper.close()
        self._tell_of_checkpoints()

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._with.keeper.abandon()
            if self._now.buffer is not None:
                self._now.buffer.abandon()
            raise
        else:
            if self._now.buffer is not None:
                self._now.buffer.close()
        finally:
            self._control.close()
            self._reporter.close()

    # One step -------------------------------------------------------------------------------------------

    def _train_step(self, lesson: Lesson) -> None:
        course, buffer = self._course, self._now.buffer
        self._reporter.state(course.step, "running")
        began = time.perf_counter()
        factor = self._job.training.factor(
            lesson.taken, steps=lesson.steps, steps_per_epoch=lesson.steps_per_epoch
        )
        new = lesson.next()
        stepped = self._stepped(self._augmented(new, self._take_representatives()), factor)
        if stepped.failed:
            reason = self._control.agree(self._said(stepped))
            course.step += 1  # all ranks have begun it; nothing of it is offered
            self._curriculum.give_up(lesson, reason)
            self._now.lesson = None
            return
        if stepped.trouble:
            self._start_over(lesson, stepped.trouble, guilty=stepped.guilty)
            return
        if buffer is not None:
            group = lesson.task if lesson.group is None else new[lesson.group]
            stored = for_layout(new, stepped.outputs, layout=buffer.layout, version=course.step)
            buffer.offer(stored, group=group)
        seconds = time.perf_counter() - began
        lesson.seconds += seconds
        self._reporter.stepped(course.step, lesson.task, stepped=stepped, seconds=seconds)
        course.step += 1
        self._refresh_preview()

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

    def _take_representatives(self) -> Representatives | None:
        buffer, course = self._now.buffer, self._course
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
        trained, worked = in_force.strategy.replays, buffer.worked - worked
        self._reporter.drew(drawn, buffer.waited - waited, worked=worked, trained=trained)
        return drawn

    def _augmented(self, new: Samples, drawn: Representatives | None) -> MiniBatch:
        if drawn is None:
            return MiniBatch(new, {}, {})
        # What was drawn before the strategy was changed is left out where the new one has no use for it.
        strategy, course = self._course.in_force.strategy, self._course
        replayed = without_outputs(drawn.samples) if strategy.replays else {}
        distilled = disowning(drawn.distillation, course.spoilt) if strategy.distils else {}
        self._reporter.distilled(ages(distilled, course.step))
        return MiniBatch(new, replayed, distilled)

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
        course.spoilt.append(range(lesson.began, course.step))
        self._learner.go_back()
        if course.in_force.strategy.restarts:
            self._learner.restart()
        lesson.again(course.step)
        course.paused = True

    def _idle(self) -> None:
        course = self._course
        if course.outcome:
            return
        self._reporter.flush()
        paused = course.paused
        self._reporter.state(
            course.step, "paused" if paused else "waiting", reason=course.trouble if paused else ""
        )
        self._refresh_preview()
        if self._job.replays is None:
            time.sleep(IDLE_S)
        elif self._control.exhausted():  # where the recorded run is now, or was cut off
            course.outcome = "stopped"

    # Commands and tasks ---------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Apply what is to take effect before this step; whether there is more to do then."""
        course = self._course
        due = self._job.replays is None and self._with.keeper.due(course.step)
        for decision in self._control.decide(course.position, self._steering.prepare, due=due):
            self._acknowledge(decision.wish, decision.refused)
        self._tell_of_checkpoints()
        return not course.outcome

    def _apply(self, wish: Wish) -> None:
        """A decision that all ranks have come to by themselves."""
        decision = self._control.own(self._course.position, wish, self._steering.prepare)
        self._acknowledge(decision.wish, decision.refused)

    def _acknowledge(self, wish: Wish, refused: str) -> None:
        course = self._course
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
            )
        )

    def _end_task(self, lesson: Lesson) -> None:
        if not self._curriculum.end(lesson):
            self._start_over(lesson, "the network predicts numbers that are not finite")
            return
        self._save_weights()
        self._now.lesson = None

    def _buffer_made(self, lesson: Lesson) -> bool:
        """Make the buffer that the settings in force ask for; where it has no room, wait for a person."""
        course, buffer, trouble = self._course, None, ""
        assert self._learner.signature is not None  # noqa: S101 - for the type checker; a task was met
        layout, rehearsal = course.in_force.stored(lesson.samples, self._learner.signature.no_outputs("cpu"))
        try:
            buffer = DistributedBuffer(
                layout,
                rehearsal,
                seed=self._job.seed,
                exchange=GroupExchange(self._groups),
                device=self._job.device,
            )
        except (SettingsError, MemoryError) as error:
            trouble = said(error, rank=self._groups.rank, step=course.step)
        reason = self._control.agree(trouble)
        if reason:
            if buffer is not None:
                buffer.close()
            course.trouble = (
                f"the rehearsal buffer cannot be made: {reason} Nothing is lost: steer(capacity=...), "
                "resume() and wait again, or stop."
            )
            course.paused = True
            return False
        self._now.buffer = buffer
        return True

    # Showing and keeping --------------------------------------------------------------------------------

    def _refresh_preview(self) -> None:
        if self._groups.rank == 0:
            self.gallery.refresh(self._course.begun - 1, step=self._course.step)

    def _save_weights(self) -> None:
        if self._groups.rank == 0:
            write_private(self._job.run.weights, save(dict(self._learner.weights())))

    def _tell_of_checkpoints(self) -> None:
        for result in self._with.keeper.finished():
            self._reporter.tell(result)
