"""The newest preview of each task, made now and then while rank 0 trains, and kept after every task."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from rehearsal_kit.layout import Samples
from rehearsal_kit.learner import Learner
from rehearsal_kit.preview import Image, Preview, append_previews
from rehearsal_kit.stream import Stream

INTERVAL_S = 1.0
LIKELIEST = 3
"""Classes that are named."""


class Gallery:
    """Belongs to rank 0's training thread; other threads may read `newest` and set `wanted`."""

    def __init__(self, learner: Learner, stream: Stream) -> None:
        self.newest: dict[int, Preview] = {}
        """By task. Whole entries are replaced, so any thread may read."""
        self.wanted: int | None = None
        """The task whose preview is kept fresh; None: the newest that has begun."""
        self._learner = learner
        self._stream = stream
        self._made = 0.0

    def refresh(self, newest: int, *, step: int) -> None:
        """Make the wanted preview anew if the last one is a second old."""
        if time.monotonic() - self._made < INTERVAL_S:
            return
        self._made = time.monotonic()
        task = newest if self.wanted is None else self.wanted
        if 0 <= task <= newest:
            self._make(task, step)

    def keep(self, path: Path, tasks: Iterable[int], *, after: int, step: int) -> None:
        """Append previews of these tasks, as they are after one was trained, to the file of a run."""
        made = [preview for task in tasks if (preview := self._make(task, step)) is not None]
        if made:
            append_previews(path, made, after=after)

    def _make(self, task: int, step: int) -> Preview | None:
        sample = self._stream.shown(task)
        if sample is None or self._learner.signature is None:
            return None
        preview = _preview(sample, self._learner, task=task, step=step)
        self.newest[task] = preview
        return preview


def _preview(sample: Samples, learner: Learner, *, task: int, step: int) -> Preview:
    signature = learner.signature
    assert signature is not None  # noqa: S101 - for the type checker; the caller has looked
    outputs = learner.predict(sample[signature.inputs])
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
    )


def _image(tensor: torch.Tensor) -> Image:
    """The first sample as a picture; a vector becomes one row of it."""
    values = tensor[0].float()
    flat = (
        values.mean(dim=0)
        if values.dim() == 3
        else values.reshape(-1, values.shape[-1] if values.dim() else 1)
    )
    image: Image = flat.numpy()
    return image


def _said(name: str, truth: torch.Tensor, logits: torch.Tensor) -> str:
    shares = logits[0].softmax(dim=0)
    best = shares.argsort(descending=True)[:LIKELIEST].tolist()
    guesses = ", ".join(f"{number} ({float(shares[number]):.2f})" for number in best)
    return f"true {name} {int(truth[0])}; predicted {guesses}"
