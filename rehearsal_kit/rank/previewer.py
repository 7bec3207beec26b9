"""Previews of tasks: made for whoever looks, and kept after every task. Nothing here ends a run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from rehearsal_kit.base.errors import said
from rehearsal_kit.base.failure_kinds import Kind, raise_of_device
from rehearsal_kit.base.limits import require_integer, require_switch
from rehearsal_kit.base.thread_priority import step_back
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.data.task_stream import TaskStream
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.record.preview_files import Image, Preview, append_previews

INTERVAL_S = 1.0
ASKED_S = 5.0
"""Seconds for which the preview is kept fresh after somebody asked."""
REMEMBERED = 4
"""Previews that stay in memory; others are made anew when somebody asks."""
TOGETHER = 32
"""Previews in one file, and in memory until it is written."""
MOST_WRITES = 16
"""Files that wait for the disk; of further ones nothing is kept once it has not answered in time."""
LAST_S = 10.0
"""What the disk has to write one."""
MOMENT_S = 0.5
"""What it still has where ranks end early."""
LIKELIEST = 3
"""Classes that are named."""


class _Made:
    """Previews that the same weights have made, and which of them somebody looks at."""

    def __init__(self) -> None:
        self.asked: tuple[int | None, float] = (None, -ASKED_S)
        """The task that was asked for, None for the newest that has begun, and when, in monotonic seconds."""
        self.by_task: dict[int, Preview] = {}
        """The newest last. Replaced as a whole, so any thread may read."""
        self.last = 0.0
        """When one was made for somebody who looks, in monotonic seconds."""

    def remember(self, preview: Preview) -> None:
        others = {number: each for number, each in self.by_task.items() if number != preview.task}
        everything = {**others, preview.task: preview}
        newest, latest = max(everything), list(everything)[-REMEMBERED:]
        self.by_task = {number: everything[number] for number in dict.fromkeys((newest, *latest))}


class Previewer:
    """Belongs to rank 0's training thread; other threads may `ask` and read the `newest`.

    Where the run keeps an average of its weights, that predicts what is kept; whoever asks for it sees what
    the weights in training make of the same, which costs a forward pass only while somebody does.

    folder: where the previews of the run are kept. Whatever goes wrong here is told by `news`.
    """

    def __init__(self, learner: Learner, stream: TaskStream, folder: Path) -> None:
        self._learner = learner
        self._stream = stream
        self._folder = folder
        self._made = {False: _Made(), True: _Made()}
        """Those by the network that predicts, and by the weights in training where these are others."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="previews", initializer=step_back)
        self._writes: list[Future[None]] = []
        self._news: deque[str] = deque()
        """What was not said yet, in order: a trouble must be said, also where it is over already."""
        self._troubled = False

    def ask(self, task: int | None, *, trained: bool = False) -> None:
        """Somebody looks at this task, or None, at the newest: its preview is kept fresh for some seconds.

        trained: at what the weights in training make of it, also where an average of them predicts.
        SettingsError for what is no number of a task: the training thread would fail on it.
        """
        if task is not None:
            task = require_integer("task", task, low=0)
        trained = require_switch("trained", trained)
        self._by(trained).asked = (task, time.monotonic())

    def newest(self, task: int | None, *, trained: bool = False) -> Preview | None:
        """The newest preview of a task, or None, of the newest; there soon is one if it was asked for."""
        remembered = self._by(trained).by_task
        return remembered.get(max(remembered, default=-1) if task is None else task)

    def refresh(self, newest: int, *, step: int) -> None:
        """Make the previews that were asked for anew where the last one is a second old."""
        now = time.monotonic()
        for trained, made in self._made.items():
            wanted, asked = made.asked
            if now - asked > ASKED_S or now - made.last < INTERVAL_S:
                continue
            made.last = now
            # Of tasks that were rolled back over: else one of them would be the newest until it comes again.
            made.by_task = {number: each for number, each in made.by_task.items() if number <= newest}
            task = newest if wanted is None else wanted
            if 0 <= task <= newest:
                self._make(task, step, trained=trained)

    def keep(self, tasks: Iterable[int], *, after: int, step: int) -> None:
        """Write previews of these tasks, as they are after one was trained, beside what comes next."""
        for part, some in enumerate(_portions(tasks)):
            if (
                len(self._writes) >= MOST_WRITES and not self._troubled
            ):  # tasks end faster than the disk writes
                wait(self._writes[:1], LAST_S)
            made = [preview for task in some if (preview := self._make(task, step)) is not None]
            self._look()
            if len(self._writes) >= MOST_WRITES:
                self._went_wrong(f"the disk is slow, so those after task {after} are not all kept")
            elif made:
                self._writes.append(self._thread.submit(self._write, made, after, part))

    def news(self) -> str | None:
        """Why previews are missing, said once; empty when none is any more; None where that is no news."""
        self._look()
        return self._news.popleft() if self._news else None

    def close(self) -> None:
        """Let the last ones be written, if the disk still answers."""
        while self._writes and wait(self._writes[:1], LAST_S).done:
            self._look()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def abandon(self) -> None:
        """Write none of those that wait; the one under way may end, so that it leaves no half of a file."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        wait([write for write in self._writes if not write.cancelled()], MOMENT_S)

    def _write(self, previews: Sequence[Preview], after: int, part: int) -> None:
        append_previews(self._folder, previews, after=after, part=part)

    def _look(self) -> None:
        done = [write for write in self._writes if write.done()]
        self._writes = [write for write in self._writes if write not in done]
        for write in done:
            error = write.exception()
            if error is None and self._troubled:
                self._troubled = False
                self._news.append("")  # after the trouble, which may not have been said yet
            elif error is not None:
                words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._went_wrong(f"{self._folder} cannot be written: {words}")

    def _went_wrong(self, words: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._news.append(words)

    def _by(self, trained: bool) -> _Made:
        """Those by the weights in training, where there is an average of them that predicts instead."""
        return self._made[trained and self._learner.training.average is not None]

    def _make(self, task: int, step: int, *, trained: bool = False) -> Preview | None:
        if self._learner.signature is None:
            return None
        try:
            sample = self._stream.shown(task)
            if sample is None:
                return None
            preview = _preview(sample, self._learner, task=task, step=step, trained=trained)
        except Exception as error:  # only pictures need it: all ranks read what training needs, and vote
            raise_of_device(error, Kind.STICKY)
            self._went_wrong(f"that of task {task} cannot be made: {said(error)}")
            return None
        self._made[trained].remember(preview)
        return preview


def _portions(tasks: Iterable[int]) -> list[list[int]]:
    each = list(tasks)
    return [each[begin : begin + TOGETHER] for begin in range(0, len(each), TOGETHER)]


def _preview(sample: Samples, learner: Learner, *, task: int, step: int, trained: bool) -> Preview:
    signature = learner.signature
    assert signature is not None  # noqa: S101 - for the type checker; the caller has looked
    outputs = learner.predict(sample[signature.inputs].clone(), trained=trained)  # it may work in place
    images = [name for name, kind in signature.kinds.items() if kind != "class" and outputs[name].dim() == 4]
    classes = [name for name, kind in signature.kinds.items() if kind == "class"]
    return Preview(
        task=task,
        step=step,
        name=signature.inputs,
        input=_image(sample[signature.inputs]),
        truth={name: _image(sample[name]) for name in images},
        predicted={name: _image(outputs[name]) for name in images},
        words="; ".join(_said(name, sample[name], outputs[name]) for name in classes),
        trained=None if learner.training.average is None else trained,
    )


def _image(tensor: torch.Tensor) -> Image:
    """The first sample as a picture of its own; a vector becomes one row of it."""
    values = tensor[0].float()
    flat = (
        values.mean(dim=0)
        if values.dim() == 3
        else values.reshape(-1, values.shape[-1] if values.dim() else 1)
    )
    image: Image = flat.clone().numpy()
    return image


def _said(name: str, truth: torch.Tensor, logits: torch.Tensor) -> str:
    shares = logits[0].softmax(dim=0)
    best = shares.argsort(descending=True)[:LIKELIEST].tolist()
    guesses = ", ".join(f"{number} ({float(shares[number]):.2f})" for number in best)
    return f"true {name} {int(truth[0])}; predicted {guesses}"
