"""What rehearsal takes of the training thread at a step, and of the thread beside it, on one rank."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.bench.spread import Spread
from rehearsal_kit.bench.table import Table
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import IDENTITY, RowLayout

TRAINING_US = 60
"""Processor time that `advance` and `offer` may take together: the launch of a few kernels."""
BACKGROUND_US = 100
"""The same of the background thread: a step that waits for the interpreter pays for it."""
BATCH, NUMBERS = 16, 188
"""New samples of a step, and float32 numbers of each: rows of 768 bytes."""
POOL = 64
"""Different images, used again and again; every sample has a number of its own, so the buffer fills up."""
SETTINGS = Rehearsal(representatives=24, candidates=8, capacity=2000)
COLUMNS = ("mini-batches are", "advance us", "offer us", "both us", f"<= {TRAINING_US}", "background us",
           f"<= {BACKGROUND_US}")  # fmt: skip


@dataclass
class ThreadCost:
    """Processor time in seconds, step by step."""

    copied: bool
    """Whether the training thread copies what is offered, or leaves that to the other one."""
    advance: list[float] = field(default_factory=list)
    offer: list[float] = field(default_factory=list)
    background: list[float] = field(default_factory=list)
    stored: int = 0
    """Samples in the buffer at the end."""

    @property
    def training(self) -> list[float]:
        """What the training thread takes in all."""
        return [sum(both) for both in zip(self.advance, self.offer, strict=True)]

    def line(self) -> tuple[str, ...]:
        """This cost's line of the table."""
        parts = (self.advance, self.offer, self.training, self.background)
        advance, offer, training, background = (Spread.of([s * 1e6 for s in part]) for part in parts)
        return (
            "copied when offered" if self.copied else "lent, as in a session",
            advance.text(0),
            offer.text(0),
            training.text(0),
            "yes" if training.median <= TRAINING_US else "no",
            background.text(0),
            "yes" if background.median <= BACKGROUND_US else "no",
        )

    def data(self) -> dict[str, Any]:
        """Plain values."""
        seconds = {"training": self.training, "background": self.background}
        medians = {name: Spread.of(of).median for name, of in seconds.items()}
        return {"copied": self.copied, "stored": self.stored, **medians}


class ClockedExchange(GroupExchange):
    """Reads the clock of the background thread at every job."""

    def __init__(self) -> None:
        super().__init__(ProcessGroups(0, 1))
        self.clock: list[float] = []

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of all ranks, in order of rank."""
        self.clock.append(time.thread_time())
        return super().gather(numbers)


def measure_threads(steps: int) -> list[ThreadCost]:
    """Steps with and without the copy, in turns, after as many that fill the buffer and are not counted."""
    pool = [_samples(number) for number in range(POOL)]
    costs = [ThreadCost(copied=True), ThreadCost(copied=False)]
    exchanges = [ClockedExchange() for _ in costs]
    layout = RowLayout.of(pool[0])
    buffers = [DistributedBuffer(layout, SETTINGS, seed=0, exchange=exchange) for exchange in exchanges]
    first = -(-SETTINGS.samples(layout.row_bytes) // BATCH)
    for step in range(first + steps):
        for cost, buffer in zip(costs, buffers, strict=True):
            taken = _step(buffer, _numbered(pool[step % POOL], step), copy=cost.copied)
            if step >= first:
                cost.advance.append(taken[0])
                cost.offer.append(taken[1])
    for cost, buffer, exchange in zip(costs, buffers, exchanges, strict=True):
        cost.stored = len(buffer.state().contents.groups)
        buffer.close()
        cost.background = [end - begin for begin, end in itertools.pairwise(exchange.clock[first:])]
    return costs


def thread_table(costs: Sequence[ThreadCost]) -> Table:
    """Both, with what they mean."""
    notes = (
        f"Processor time, median (quartiles) over {len(costs[0].advance)} steps of each in turns: b = "
        f"{BATCH} samples of {4 * NUMBERS + 16} bytes, r = {SETTINGS.representatives}, "
        f"c = {SETTINGS.candidates}, one rank, a full buffer. Nothing is trained: caches are warm.",
    )
    return Table("What rehearsal takes of two threads", COLUMNS, tuple(cost.line() for cost in costs), notes)


def _step(buffer: DistributedBuffer, samples: dict[str, torch.Tensor], *, copy: bool) -> tuple[float, float]:
    began = time.thread_time()
    buffer.advance()
    between = time.thread_time()
    buffer.offer(samples, group=0, copy=copy)
    ended = time.thread_time()
    buffer.state()  # waits: so that the job of one does not fall into the step of the other
    return between - began, ended - between


def _samples(number: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(number)
    return {
        "image": torch.rand(BATCH, NUMBERS, generator=random),
        "label": torch.randint(10, (BATCH,), generator=random),
        IDENTITY: torch.arange(BATCH),
    }


def _numbered(samples: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    return {**samples, IDENTITY: samples[IDENTITY] + BATCH * step}
