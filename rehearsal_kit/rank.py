"""One rank: the training loop, written out. A plain object that can run alone in one process."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from safetensors.torch import save

from rehearsal_kit.commands import Arrived, Command, FinishStream, Pause, Resume, SetAside, Steer, Stop
from rehearsal_kit.control import Commit, Control, said
from rehearsal_kit.exchange import GroupExchange
from rehearsal_kit.groups import Groups
from rehearsal_kit.job import Job
from rehearsal_kit.layout import RowLayout, Samples
from rehearsal_kit.learner import Learner
from rehearsal_kit.lesson import Lesson
from rehearsal_kit.preview import Preview, append_preview
from rehearsal_kit.randomness import torch_seed
from rehearsal_kit.rehearsal import DistributedBuffer
from rehearsal_kit.reporter import Reporter
from rehearsal_kit.rounds import Representatives, Round
from rehearsal_kit.run_folder import write_private
from rehearsal_kit.scans.opening import open_scan
from rehearsal_kit.settings import Rehearsal, digest
from rehearsal_kit.stream import Stream
from rehearsal_kit.tasks import Experience, open_experience
from rehearsal_kit.telemetry import (
    Applied,
    Evaluated,
    Joined,
    Record,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)

INPUTS = "diffraction"
TARGETS = ("amplitude", "phase")
PREVIEW_INTERVAL_S = 1.0
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
        self.previews: dict[int, Preview] = {}
        """Newest preview of each task; rank 0 only. Whole entries are replaced, so any thread may read."""
        self.wanted_preview: int | None = None
        """The task whose preview is kept fresh; None: the newest."""
        self._job = job
        self._groups = groups
        self._learner = Learner(
            job.network, learning_rate=job.training.learning_rate, device=job.device, groups=groups
        )
        self._control = Control(job.run, groups, mailbox)
        self._reporter = Reporter(job.run, groups.rank, publish)
        self._stream = Stream(groups, seed=job.seed)
        self._preparation = job.preparation
        self._rehearsal = job.rehearsal
        self._buffer: DistributedBuffer | None = None
        self._lesson: Lesson | None = None
        self._begun = 0
        self._step = 0
        self._command = 0
        self._paused = self._finishing = False
        self._outcome: str = ""
        self._previewed = 0.0

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
        fresh = lesson.next()
        drawn = self._take_representatives()
        loss = self._learner.step(
            _augment(fresh, drawn),
            strategy=self._job.strategy,
            inputs=INPUTS,
            seed=torch_seed(self._job.seed, "forward", self._groups.rank, self._step),
        )
        if self._buffer is not None:
            self._buffer.offer(fresh, group=lesson.task)
        seconds = time.perf_counter() - began
        lesson.seconds += seconds
        self._reporter.stepped(self._step, lesson.task, loss=loss, seconds=seconds)
        self._step += 1
        self._refresh_preview()

    def _take_representatives(self) -> Representatives | None:
        if self._buffer is None:
            return None
        waited, worked = self._buffer.waited, self._buffer.worked
        drawn = self._buffer.advance(
            Round(
                step=self._step,
                representatives=self._rehearsal.representatives,
                distillation=self._rehearsal.distillation,
                capacity=self._rehearsal.samples(self._buffer.layout.row_bytes),
                settings=int(digest(self._in_force())[:15], 16),
                command=self._command,
            )
        )
        self._reporter.drew(drawn, self._buffer.waited - waited, worked=self._buffer.worked - worked)
        return drawn

    def _idle(self) -> None:
        self._reporter.flush()
        self._reporter.state(self._step, "paused" if self._paused else "waiting")
        self._refresh_preview()
        time.sleep(IDLE_S)

    # Commands -------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Apply what is to take effect before this step; whether there is more to do then."""
        for decision in self._control.decide(self._step, self._prepare):
            self._command = max(self._command, decision.wish.number)
            in_force = self._in_force()
            self._reporter.tell_of_myself(
                Applied(
                    rank=self._groups.rank,
                    step=self._step,
                    number=decision.wish.number,
                    kind=type(decision.wish.command).__name__,
                    settings=in_force,
                    digest=digest(in_force),
                    refused=decision.refused,
                )
            )
        return not self._outcome

    def _in_force(self) -> dict[str, float]:
        settings = {
            "learning_rate": self._learner.learning_rate,
            "representatives": self._rehearsal.representatives,
        }
        capacity = self._rehearsal.capacity
        return settings if isinstance(capacity, str) else {**settings, "capacity": capacity}

    def _prepare(self, command: Command) -> Commit:  # noqa: PLR0911 - one line per kind of command
        match command:
            case Arrived():
                preparation = self._preparation.fitted(open_scan(command.path))
                experience = open_experience(command, preparation)
                return lambda: self._accept(command, experience)
            case SetAside():
                return lambda: self._tell_set_aside(command)
            case Steer():
                rehearsal = self._steered(command)
                return lambda: self._steer(command, rehearsal)
            case Pause() | Resume():
                return lambda: setattr(self, "_paused", isinstance(command, Pause))
            case FinishStream():
                return lambda: setattr(self, "_finishing", True)
            case Stop():
                return lambda: setattr(self, "_outcome", "stopped")
        return lambda: None  # Watch: the control of rank 0 has begun to look already

    def _accept(self, command: Arrived, experience: Experience) -> None:
        self._preparation = experience.preparation
        self._reporter.tell(
            TaskArrived(
                step=self._step,
                task=self._stream.append(experience),
                name=command.name,
                path=command.path,
                training=len(experience.training),
                watched=len(experience.watched),
                test=len(experience.test),
                skipped=experience.skipped,
                simulated=experience.scan.simulated,
            )
        )

    def _steered(self, command: Steer) -> Rehearsal:
        names = ("representatives", "capacity")
        wanted = {name: value for name in names if (value := getattr(command, name)) is not None}
        rehearsal = replace(self._rehearsal, **wanted)
        if self._buffer is not None:
            self._buffer.require_capacity(rehearsal)
        return rehearsal

    def _steer(self, command: Steer, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        if command.learning_rate is not None:
            self._learner.learning_rate = command.learning_rate

    def _tell_set_aside(self, command: SetAside) -> None:
        aside = TaskSetAside(step=self._step, name=command.name, path=command.path, reason=command.reason)
        self._reporter.tell(aside)

    # Tasks ----------------------------------------------------------------------------------------------

    def _begin_task(self) -> Lesson | None:
        if self._begun == len(self._stream):
            self._outcome = "finished" if self._finishing else ""
            return None
        task, self._begun = self._begun, self._begun + 1
        trouble, samples = "", None
        try:
            samples = self._read(task)
        except Exception as error:  # whatever is wrong with one scan, the run must go on
            trouble = said(error)
        reason = self._control.agree(trouble)
        lesson = self._new_lesson(task, samples) if samples is not None and not reason else None
        if lesson is None or not lesson.steps:
            self._set_aside(task, reason or "no training frame has any counts; was the shutter closed?")
            return None
        self._lesson = lesson
        if self._job.strategy.restarts:
            self._learner.restart()
        if self._job.strategy.rehearses and self._buffer is None:
            layout = RowLayout.of(lesson.samples, half=self._rehearsal.half)
            self._buffer = DistributedBuffer(
                layout,
                self._rehearsal,
                seed=self._job.seed,
                exchange=GroupExchange(self._groups),
                device=self._job.device,
            )
        self._reporter.tell(TaskBegan(step=self._step, task=task, steps=self._lesson.steps, time=time.time()))
        return self._lesson

    def _read(self, task: int) -> Samples:
        # What is held out is read as well, so that a fault in it is found before the task is trained.
        for split in ("watched", "test"):
            for _ in self._stream.held_out(task, split):
                pass
        return self._stream.training_samples(self._job.strategy.tasks(task))

    def _new_lesson(self, task: int, samples: Samples) -> Lesson:
        training = self._job.training
        largest = max(int(size) for size in self._groups.gather(str(len(samples[INPUTS]))))
        return Lesson(
            task=task,
            samples=samples,
            steps_per_epoch=-(-largest // training.batch),
            epochs=training.epochs,
            batch=training.batch,
            key=(self._job.seed, self._groups.rank),
        )

    def _set_aside(self, task: int, reason: str) -> None:
        experience = self._stream[task]
        assert experience is not None  # noqa: S101 - for the type checker; it was there to be read
        command = SetAside(name=experience.name, path=str(experience.scan.path), reason=reason)
        self._control.set_aside(self._step, command)
        self._tell_set_aside(command)
        self._stream.set_aside(task)

    def _end_task(self, lesson: Lesson) -> None:
        self._reporter.flush()
        for split in ("watched", "test"):
            for task in range(lesson.task + 1):
                self._evaluate(task, split, after=lesson.task)
        self._save_weights()
        self._save_previews(lesson.task)
        self._reporter.tell(
            TaskEnded(step=self._step, task=lesson.task, seconds=lesson.seconds, time=time.time())
        )
        self._lesson = None

    def _evaluate(self, task: int, split: str, *, after: int) -> None:
        if self._stream[task] is not None:
            errors = self._learner.errors(self._stream.held_out(task, split), inputs=INPUTS)
            self._reporter.tell(
                Evaluated(step=self._step, after=after, task=task, split=split, errors=errors)
            )

    # Showing and keeping --------------------------------------------------------------------------------

    def _refresh_preview(self) -> None:
        if self._groups.rank != 0 or time.monotonic() - self._previewed < PREVIEW_INTERVAL_S:
            return
        self._previewed = time.monotonic()
        task = self._begun - 1 if self.wanted_preview is None else self.wanted_preview
        if 0 <= task < len(self._stream):
            self._preview(task)

    def _preview(self, task: int) -> Preview | None:
        sample = self._stream.shown(task)
        if sample is None:
            return None
        predicted = self._learner.predict(sample[INPUTS])
        truth = {name: sample[name][0, 0].numpy() for name in (INPUTS, *TARGETS)}
        guess = {f"predicted_{name}": predicted[name][0, 0].numpy() for name in TARGETS}
        self.previews[task] = Preview(task=task, step=self._step, **truth, **guess)
        return self.previews[task]

    def _save_weights(self) -> None:
        if self._groups.rank == 0:
            write_private(self._job.run.weights, save(dict(self._learner.weights())))

    def _save_previews(self, after: int) -> None:
        if self._groups.rank != 0:
            return
        for task in range(after + 1):
            preview = self._preview(task)
            if preview is not None:
                append_preview(self._job.run.previews, preview, after=after)

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


def _augment(fresh: Samples, drawn: Representatives | None) -> Samples:
    if drawn is None or not len(drawn.owners):
        return fresh
    return {
        name: torch.cat([t.to(drawn.samples[name].device), drawn.samples[name]]) for name, t in fresh.items()
    }
