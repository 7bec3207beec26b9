"""What a step over the samples of all ranks came to, before and after a host has looked at it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rehearsal_kit.base.transfers import fetched
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
    """Samples of all ranks together that went through the network."""
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
    samples_everywhere: int = 0
    """Those of all ranks together, once they have met."""


class SummedStep:
    """A step over the samples of all ranks that was computed, and that no host has looked at yet.

    gradients: to take the step with, by each trained parameter, in its shape; None where some rank is known
    to have failed. numbers: what the ranks have added up, each (number,) on the device: `losses` of the
    terms, `norms` of buckets of the gradient, how many have `failed`, the `seconds` of each; and whether the
    `own losses` are finite.
    """

    def __init__(
        self,
        own: OwnPart,
        buffers: ModuleBuffers,
        *,
        gradients: Sequence[torch.Tensor] | None = None,
        numbers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.gradients = gradients
        self.outputs = own.outputs
        """Those of `Stepped`, known before it."""
        self.replayed = own.replayed
        """That of `Stepped`, known before it."""
        self._terms = [term.name for term in own.terms]
        own.terms = ()  # with all that is kept for the way back
        self._own = own
        self._buffers = buffers
        self._sizes = {name: len(part) for name, part in (numbers or {}).items()}
        self._numbers = torch.cat([*numbers.values()]) if numbers else torch.zeros(0)
        self._copied: Callable[[], torch.Tensor] | None = None
        """Waits for its numbers, which are on their way from a GPU."""
        self._read: Stepped | None = None

    @property
    def failed(self) -> bool:
        """Whether an error is known to have come, so that there are no gradients; the same on all ranks."""
        return self.gradients is None and not self._sizes

    @property
    def unsound(self) -> torch.Tensor:
        """1 where the step is not to be taken, else 0, the same on all ranks: float32 () on the device."""
        parts = self._parts
        finite = torch.cat([parts["losses"], parts["norms"]]).isfinite().all()
        return (~(finite & (parts["failed"] == 0).all())).float()

    def launched(self, *, unless: torch.Tensor) -> None:
        """The optimizer is under way, the step is read later.

        unless: float32 () on the device: where it is 1, buffers become what they were before the step.
        """
        self._buffers.leave(unless)
        self.gradients = None
        if self._numbers.is_cuda:
            self._copied = fetched(self._numbers)

    def read(self) -> Stepped:
        """What the step came to: waits for the device, and puts buffers back after trouble."""
        if self._read is None:
            self._read = self._looked_at()
            if self._read.trouble:
                self._buffers.put_back()
        return self._read

    @property
    def _parts(self) -> dict[str, torch.Tensor]:
        return dict(zip(self._sizes, self._numbers.split([*self._sizes.values()]), strict=True))

    def _looked_at(self) -> Stepped:
        own = self._own
        if not self._sizes:
            return _failed(own)
        # By one copy: each would wait for the device.
        values = iter((self._numbers if self._copied is None else self._copied()).tolist())
        told = {name: [next(values) for _ in range(size)] for name, size in self._sizes.items()}
        if any(told["failed"]):
            names = self._buffers.names_of_unseen()
            if names and not own.error:
                own.error = _unseen(names)
            return _failed(own)
        trouble = _trouble(told["losses"], told["norms"])
        return Stepped(
            dict(zip(self._terms, told["losses"], strict=True)),
            own.outputs,
            trouble,
            guilty=bool(trouble) and not told["own losses"][0],
            busy=tuple(told["seconds"]),
            rows=own.samples_everywhere,
            replayed=own.replayed,
        )


def _failed(own: OwnPart) -> Stepped:
    trouble = "the network or the strategy failed"
    return Stepped({}, {}, trouble, guilty=bool(own.error), busy=(), failed=True, error=own.error)


def _trouble(values: Sequence[float], norms: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return "the loss became " + ("NaN" if any(map(math.isnan, values)) else "infinite")
    return "" if all(map(math.isfinite, norms)) else "the gradient became infinite or NaN"


def _unseen(names: Sequence[str]) -> str:
    return (
        f"the network has written to its buffer {', '.join(names)} where torch does not count it, as through "
        "`.data` or by functional.batch_norm; the ranks would go on with other numbers each. Write to the "
        "buffer itself, `with torch.no_grad(): self.buffer.copy_(...)`, or use torch.nn.BatchNorm2d."
    )
