"""One rank: the training loop, written out. A plain object that can run alone in one process."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator

from safetensors.torch import save

from rehearsal_kit.commands import Arrived, Command, FinishStream, Pause, Resume, SetAside, Steer, Stop
from rehearsal_kit.control import Commit, Control, said
from rehearsal_kit.evaluation import Evaluation
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.experiences import open_experience
from rehearsal_kit.gallery import Gallery
from rehearsal_kit.groups import Groups
from rehearsal_kit.in_force import InForce
from rehearsal_kit.job import Job, keep_inputs
from rehearsal_kit.layout import IDENTITY, Samples
from rehearsal_kit.learner import Learner, MiniBatch
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.randomness import torch_seed
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.reporter import Reporter
from rehearsal_kit.rounds import Representatives, Round
from rehearsal_kit.run_folder import write_private
from rehearsal_kit.scan_tasks import ScanExperience
from rehearsal_kit.signature import Signature
from rehearsal_kit.stored_outputs import ages, disowning, for_layout, without_outputs
from rehearsal_kit.strategies.choice import require_stored
from rehearsal_kit.stream import Stream
from rehearsal_kit.tasks import HELD_OUT, Experience
from rehearsal_kit.telemetry import Applied, Joined, Record, TaskArrived, TaskBegan, TaskEnded, TaskSetAside

IDLE_S = 0.02


class Rank:
    """Owns the loop; everything it calls is told what it needs."""

    def __init__(
        self,
        job: Job,
        groups: Groups,
        *,
        mailbox: queue.SimpleQueue[str],
        publish: Callable[[Record], None],
    ) -> None:
        self._job = job
        self._groups = groups
        self._learner = Learner(job.network, job.training, device=job.device, groups=groups)
        self._control = Control(job.run, groups, mailbox)
        self._reporter = Reporter(job.run, groups.rank, publish)
        self._stream = Stream(groups, seed=job.seed)
        self._evaluation = Evaluation(
            self._learner, self._stream, reporter=self._reporter, earlier=job.training.evaluated
        )
        self.gallery = Gallery(self._learner, self._stream)
        """Previews; only rank 0 makes any."""
        self._preparation = job.preparation
        self._in_force = InForce(
            learning_rate=job.training.learning_rate, rehearsal=job.rehearsal, strategy=job.strategy
        )
        self._buffer: DistributedBuffer | None = None
        self._lesson: Lesson | None = None
        self._begun = 0
        self._step = 0
        self._command = 0
        self._paused = self._finishing = False
        self._outcome = self._trouble = ""
        self._spoilt: list[range] = []
        """Steps that were taken back: outputs made in them are not to be held to."""

    def run(self) -> str:
        """Train until the stream is finished or someone says stop; returns "finished" or "stopped"."""
        with self._closing():
            self._reporter.tell_of_myself(
                Joined(
                    rank=self._groups.rank,
                    ranks=self._groups.ranks,
                    device=self._job.device,
                    process=os.getpid(),
                    time=time.time(),
                )
            )
            while self._goes_on():
                lesson = None if self._paused else self._lesson or self._begin_task()
                if lesson is not None:
                    self._train_step(lesson)
                    if lesson.done:
                        self._end_task(lesson)
                elif not self._outcome:
                    self._idle()
            self._reporter.flush()
            if self._outcome == "finished":
                self._keep_previews(self._evaluation.last(step=self._step), after=self._evaluation.newest)
            self._save_weights()  # also where it was stopped in the middle of a task
        return self._outcome

    @property
    def step(self) -> int:
        """Number of the next step."""
        return self._step

    # One step -------------------------------------------------------------------------------------------

    def _train_step(self, lesson: Lesson) -> None:
        self._reporter.state(self._step, "running")
        began = time.perf_counter()
        factor = self._job.training.factor(
            lesson.taken, steps=lesson.steps, steps_per_epoch=lesson.steps_per_epoch
        )
        new = lesson.next()
        drawn = self._take_representatives()
        stepped = self._learner.step(
            self._augmented(new, drawn),
            strategy=self._in_force.strategy,
            factor=factor,
            seed=torch_seed(self._job.seed, "forward", self._groups.rank, self._step),
        )
        if stepped.trouble:
            self._start_over(lesson, stepped.trouble, guilty=stepped.guilty)
            return
        if self._buffer is not None:
            group = lesson.task if lesson.group is None else new[lesson.group]
            stored = for_layout(new, stepped.outputs, layout=self._buffer.layout, version=self._step)
            self._buffer.offer(stored, group=group)
        seconds = time.perf_counter() - began
        lesson.seconds += seconds
        self._reporter.stepped(self._step, lesson.task, terms=stepped.terms, seconds=seconds)
        self._step += 1
        self._refresh_preview()

    def _take_representatives(self) -> Representatives | None:
        if self._buffer is None:
            return None
        waited, worked = self._buffer.waited, self._buffer.worked
        drawn = self._buffer.advance(
            Round(
                step=self._step,
                representatives=self._in_force.representatives,
                distillation=self._in_force.distillation,
                capacity=self._in_force.rehearsal.samples(self._buffer.layout.row_bytes),
                settings=int(self._in_force.digest[:15], 16),
                command=self._command,
            )
        )
        trained, worked = self._in_force.strategy.replays, self._buffer.worked - worked
        self._reporter.drew(drawn, self._buffer.waited - waited, worked=worked, trained=trained)
        return drawn

    def _augmented(self, new: Samples, drawn: Representatives | None) -> MiniBatch:
        if drawn is None:
            return MiniBatch(new, {}, {})
        # What was drawn before the strategy was changed is left out where the new one has no use for it.
        replayed = without_outputs(drawn.samples) if self._in_force.strategy.replays else {}
        distils = self._in_force.strategy.distils
        distilled = disowning(drawn.distillation, self._spoilt) if distils else {}
        self._reporter.distilled(ages(distilled, self._step))
        return MiniBatch(new, replayed, distilled)

    def _start_over(self, lesson: Lesson, trouble: str, *, guilty: bool = False) -> None:
        """After a loss that is not finite: back to where the task began, and wait for a person.

        The weights that made this loss may be spoilt already, so the step before is no place to go on from.
        """
        ranks = [rank for rank, said in enumerate(self._groups.gather("1" if guilty else "")) if said]
        experience = self._stream[lesson.task]
        where = f"rank {', '.join(map(str, ranks))}" if ranks else "the sum over all ranks"
        self._trouble = (
            f"task {lesson.task} ({experience.name if experience is not None else ''}), step {self._step}, "
            f"{where}: {trouble}. Weights and optimizer are back where this task began, and nothing "
            f"else is lost: lower the learning rate ({self._learner.learning_rate:g}) and resume, or stop."
        )
        self._step += 1  # all ranks have begun it; nothing of it is offered
        self._spoilt.append(range(lesson.began, self._step))
        self._learner.go_back()
        lesson.again(self._step)
        self._paused = True

    def _idle(self) -> None:
        self._reporter.flush()
        self._reporter.state(
            self._step, "paused" if self._paused else "waiting", reason=self._trouble if self._paused else ""
        )
        self._refresh_preview()
        time.sleep(IDLE_S)

    # Commands -------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Apply what is to take effect before this step; whether there is more to do then."""
        for decision in self._control.decide(self._step, self._prepare):
            self._command = max(self._command, decision.wish.number)
            self._reporter.tell_of_myself(
                Applied(
                    rank=self._groups.rank,
                    step=self._step,
                    number=decision.wish.number,
                    kind=type(decision.wish.command).__name__,
                    settings=self._in_force.plain,
                    digest=self._in_force.digest,
                    refused=decision.refused,
                )
            )
        return not self._outcome

    def _prepare(self, command: Command) -> Commit:  # noqa: PLR0911 - one line per kind of command
        match command:
            case Arrived():
                experience = open_experience(command, self._preparation)
                return lambda: self._accept(command, experience)
            case SetAside():
                return lambda: self._tell_set_aside(command)
            case Steer():
                in_force = self._steered(command)
                return lambda: self._steer(in_force)
            case Pause() | Resume():
                return lambda: self._pause(isinstance(command, Pause))
            case FinishStream():
                return lambda: setattr(self, "_finishing", True)
            case Stop():
                return lambda: setattr(self, "_outcome", "stopped")
        return lambda: None  # Watch: the control of rank 0 has begun to look already

    def _accept(self, command: Arrived, experience: Experience) -> None:
        if isinstance(experience, ScanExperience):
            self._preparation = experience.preparation
        self._reporter.tell(
            TaskArrived(
                step=self._step,
                task=self._stream.append(experience),
                name=command.name,
                path=command.path,
                training=experience.count("training"),
                watched=experience.count("watched"),
                test=experience.count("test"),
                skipped=experience.skipped,
                simulated=experience.simulated,
            )
        )

    def _pause(self, paused: bool) -> None:
        self._paused, self._trouble = paused, ""

    def _steered(self, command: Steer) -> InForce:
        steered = self._in_force.steered(command)
        if self._buffer is not None:
            self._buffer.require_capacity(steered.rehearsal)
        changed = steered.strategy.name != self._in_force.strategy.name
        if changed and self._learner.signature is not None:
            require_stored(steered.strategy, None if self._buffer is None else self._buffer.layout)
        return steered

    def _steer(self, steered: InForce) -> None:
        self._reporter.flush()  # its records are each of one strategy
        self._in_force = steered
        self._learner.learning_rate = steered.learning_rate

    def _tell_set_aside(self, command: SetAside) -> None:
        aside = TaskSetAside(step=self._step, name=command.name, path=command.path, reason=command.reason)
        self._reporter.tell(aside)

    # Tasks ----------------------------------------------------------------------------------------------

    def _begin_task(self) -> Lesson | None:
        if self._begun == len(self._stream):
            self._outcome = "finished" if self._finishing else ""
            return None
        task, self._begun = self._begun, self._begun + 1
        trouble, read = "", None
        try:
            read = self._read(task)
        except Exception as error:  # whatever is wrong with one task, the run must go on
            trouble = said(error, rank=self._groups.rank, step=self._step)
        reason = self._control.agree(trouble)
        lesson = self._new_lesson(task, read[0]) if read is not None and not reason else None
        if read is None or lesson is None or not lesson.steps:
            self._set_aside(task, reason or "no training frame has any counts; was the shutter closed?")
            return None
        if self._learner.signature is None:
            self._meet(read[1], task)
        self._lesson = lesson
        self._evaluation.before(task, step=self._step)
        if self._in_force.strategy.restarts:
            self._learner.restart()
        self._learner.keep()
        if self._buffer is None and self._in_force.needs_buffer:
            self._buffer = self._new_buffer(lesson.samples)
        self._reporter.tell(TaskBegan(step=self._step, task=task, steps=self._lesson.steps, time=time.time()))
        return self._lesson

    def _meet(self, signature: Signature, task: int) -> None:
        self._learner.signature = signature
        experience = self._stream[task]
        if self._groups.rank == 0 and experience is not None:
            keep_inputs(self._job, experience, signature)

    def _read(self, task: int) -> tuple[Samples, Signature]:
        """This rank's training samples, once all that the task brings was seen to fit the run."""
        newest = self._stream.training_samples([task])
        signature = self._learner.signature or self._learner.meet(newest, self._stream.inputs(task))
        signature.require(newest)
        for split in HELD_OUT:
            for batch in self._stream.held_out(task, split):
                signature.require(batch)
        tasks = self._in_force.strategy.tasks(task)
        return (newest if len(tasks) == 1 else self._stream.training_samples(tasks)), signature

    def _new_lesson(self, task: int, samples: Samples) -> Lesson:
        training, experience = self._job.training, self._stream[task]
        largest = max(int(size) for size in self._groups.gather(str(len(samples[IDENTITY]))))
        return Lesson(
            task=task,
            samples=samples,
            steps_per_epoch=-(-largest // training.batch),
            epochs=training.epochs,
            batch=training.batch,
            key=(self._job.seed, self._groups.rank),
            began=self._step,
            group=None if experience is None else experience.group,
        )

    def _new_buffer(self, samples: Samples) -> DistributedBuffer:
        assert self._learner.signature is not None  # noqa: S101 - for the type checker; a task was met
        layout, rehearsal = self._in_force.stored(samples, self._learner.signature.no_outputs("cpu"))
        return DistributedBuffer(
            layout,
            rehearsal,
            seed=self._job.seed,
            exchange=GroupExchange(self._groups),
            device=self._job.device,
        )

    def _set_aside(self, task: int, reason: str) -> None:
        experience = self._stream[task]
        assert experience is not None  # noqa: S101 - for the type checker; it was there to be read
        command = SetAside(name=experience.name, path=str(experience.path), reason=reason)
        self._control.set_aside(self._step, command)
        self._tell_set_aside(command)
        self._stream.set_aside(task)

    def _end_task(self, lesson: Lesson) -> None:
        self._reporter.flush()
        evaluated = self._evaluation.after(lesson.task, step=self._step)
        if not self._evaluation.sound:
            self._start_over(lesson, "the network predicts numbers that are not finite")
            return
        self._keep_previews(evaluated, after=lesson.task)
        self._save_weights()
        self._reporter.tell(
            TaskEnded(step=self._step, task=lesson.task, seconds=lesson.seconds, time=time.time())
        )
        self._lesson = None

    # Showing and keeping --------------------------------------------------------------------------------

    def _refresh_preview(self) -> None:
        if self._groups.rank == 0:
            self.gallery.refresh(self._begun - 1, step=self._step)

    def _keep_previews(self, tasks: Iterable[int], *, after: int) -> None:
        if self._groups.rank == 0:
            self.gallery.keep(self._job.run.previews, tasks, after=after, step=self._step)

    def _save_weights(self) -> None:
        if self._groups.rank == 0:
            write_private(self._job.run.weights, save(dict(self._learner.weights())))

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._buffer is not None:
                self._buffer.abandon()
            raise
        else:
            if self._buffer is not None:
                self._buffer.close()
        finally:
            self._control.close()
            self._reporter.close()
