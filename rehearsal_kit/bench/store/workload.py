"""What all contestants are given: rows of one size, and mini-batches without end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from rehearsal_kit.bench.store.side_by_side import Work, nothing
from rehearsal_kit.buffer.row_layout import IDENTITY

POOL = 8
"""Different mini-batches, used again and again."""
FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Size of store, rows and mini-batches."""

    capacity: int
    """Samples in the store."""
    fields: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each field of a sample; all float32."""
    batch: int = 56
    """New samples per step (b)."""
    candidates: int = 14
    """Samples of a mini-batch that are offered (c)."""
    representatives: int = 7
    """Samples drawn per step (r)."""

    @property
    def row_bytes(self) -> int:
        """Bytes per sample."""
        return FLOAT32 * sum(math.prod(shape) for _, shape in self.fields)

    def samples(self, count: int) -> dict[str, torch.Tensor]:
        """Random samples: named tensors (sample, ...)."""
        return {name: torch.rand(count, *shape) for name, shape in self.fields}


WIDE_FIELDS = (("diffraction", (1, 64, 64)), ("target", (2, 64, 64)))
"""48 KiB a sample: a diffraction pattern with amplitude and phase."""
SLIM_FIELDS = (("values", (64,)),)
"""256 bytes a sample: what is left is the cost per row, not per byte."""


@dataclass(frozen=True)
class Contestant:
    """A store that holds its full capacity, and what is measured of it."""

    phases: Mapping[str, Work]
    """One step of each: "update", "draw" and "both", or "both" alone where the two cannot be parted."""
    reset: Work = nothing
    """What precedes every block: going back to the number of samples seen that is to be measured."""
    settle: Work = nothing
    """What ends every block, and is measured with it: waiting for other threads."""
    close: Work = nothing


def both(update: Work, draw: Work) -> dict[str, Work]:
    """The phases of a store whose update and draw are separate calls."""

    def step() -> None:
        update()
        draw()

    return {"update": update, "draw": draw, "both": step}


class TaskStream:
    """Mini-batches from a pool; with `identified`, every sample has a number that never came before."""

    def __init__(self, workload: Workload, *, identified: bool = False) -> None:
        self._pool = [workload.samples(workload.batch) for _ in range(POOL)]
        self._identified = identified
        self._count = 0
        self.seen = 0
        """Samples given so far."""

    def next(self, count: int | None = None) -> dict[str, torch.Tensor]:
        """The next mini-batch, or only its first `count` samples: named tensors (sample, ...)."""
        samples = self._pool[self._count % POOL]
        self._count += 1
        if count is not None:
            samples = {name: tensor[:count] for name, tensor in samples.items()}
        size = len(next(iter(samples.values())))
        begin, self.seen = self.seen, self.seen + size
        if self._identified:
            samples = {**samples, IDENTITY: torch.arange(begin, self.seen)}
        return samples


def some_of(samples: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """`count` distinct samples, uniformly chosen: what a loop does whose store takes all it gets."""
    chosen = torch.randperm(len(next(iter(samples.values()))))[:count]
    return {name: tensor[chosen] for name, tensor in samples.items()}


def portions(total: int, most: int) -> Iterator[int]:
    """Numbers of at most `most` that add up to `total`."""
    for begin in range(0, total, most):
        yield min(most, total - begin)
