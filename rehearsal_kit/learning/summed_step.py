"""What a step over the samples of all ranks came to, before and after a host has looked at it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.module_state import ModuleBuffers
from rehearsal_kit.learning.strategies.strategy import Term


@dataclass(frozen=True)
class Stepped:
    """What a step came to."""

    terms: Mapping[str, float]
    """Each term of the loss over the samples of all ranks, weight included; empty where an error came."""
    outputs: Samples
    """What the network, before this step, made of the new samples of this rank: (sample, ...), detached."""
    trouble: str
    """Why no step was taken: an error, or a loss or gradient that is not finite; the same on all ranks."""
    guilty: bool
    """Whether it came from this rank's own samples."""
    busy: tuple[float, ...]
    """Seconds that each rank computed by itself, in order of rank; the rest of a step waits for others."""
    failed: bool = False
    """Whether the trouble is an error of network or strategy; the same on all ranks."""
    error: str = ""
    """What it said, on a rank on which it came."""
    rows: int = 0
    """Samples of this rank that went through the network."""
    replayed: torch.Tensor | None = None
    """Loss of each representative of this rank before this step, (drawn,), where `MiniBatch.asks_losses`."""

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


@dataclass
class OwnPart:
    """What this rank has computed by itself."""

    terms: Sequence[Term]
    outputs: Samples
    samples: int
    """That went through the network."""
    changed: list[bool]
    """Whether the network has changed each of its buffers."""
    seconds: float
    error: str = ""
    replayed: torch.Tensor | None = None
    """Loss of each representative, where it is asked for."""


class SummedStep:
    """A step over the samples of all ranks that was computed, and that no host has looked at yet."""

    def __init__(
        self,
        own: OwnPart,
        buffers: ModuleBuffers,
        *,
        gradient: torch.Tensor | None = None,
        numbers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.gradient = gradient
        """To take the step with, (number,); None where some rank is known to have failed."""
        self._own = own
        self._buffers = buffers
        self._numbers = numbers or {}

    @property
    def unsound(self) -> torch.Tensor:
        """1 where the step is not to be taken, else 0, the same on all ranks: float32 () on the device."""
        sums = torch.cat([self._numbers[name] for name in ("losses", "norm")])
        sound = sums.isfinite().all() & (self._numbers["failed"] == 0).all()
        return (~sound).float()

    def read(self) -> Stepped:
        """What the step came to, once: waits for the device, and puts buffers back after trouble."""
        stepped = self._read()
        if stepped.trouble:
            self._buffers.put_back()
        return stepped

    def _read(self) -> Stepped:
        own = self._own
        if self.gradient is None:
            return _failed(own)
        sizes = [len(part) for part in self._numbers.values()]
        values = iter(torch.cat([*self._numbers.values()]).tolist())  # by one copy
        told = {
            name: [next(values) for _ in range(size)] for name, size in zip(self._numbers, sizes, strict=True)
        }
        if any(told["failed"]):
            names = [name for name, changed in self._buffers.unseen() if changed]
            if names and not own.error:
                own.error = _unseen(names)
            return _failed(own)
        trouble = _trouble(told["losses"], told["norm"][0])
        names = [term.name for term in own.terms]
        return Stepped(
            dict(zip(names, told["losses"], strict=True)),
            own.outputs,
            trouble,
            guilty=bool(trouble) and not told["own losses"][0],
            busy=tuple(told["seconds"]),
            rows=own.samples,
            replayed=own.replayed,
        )


def _failed(own: OwnPart) -> Stepped:
    trouble = "the network or the strategy failed"
    return Stepped({}, {}, trouble, guilty=bool(own.error), busy=(), failed=True, error=own.error)


def _trouble(values: Sequence[float], norm: float) -> str:
    if not all(map(math.isfinite, values)):
        return "the loss became " + ("NaN" if any(map(math.isnan, values)) else "infinite")
    return "" if math.isfinite(norm) else "the gradient became infinite or NaN"


def _unseen(names: Sequence[str]) -> str:
    return (
        f"the network has written to its buffer {', '.join(names)} where torch does not count it, as through "
        "`.data`; the ranks would go on with other numbers each. Write to the buffer itself: "
        "`with torch.no_grad(): self.buffer.copy_(...)`."
    )
