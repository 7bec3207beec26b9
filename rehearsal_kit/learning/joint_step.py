"""Loss and gradient of one step over the samples of all ranks; an error on one of them is told to all.

    (all-reduce   which classes are among the new samples, where the loss depends on it)
    every rank    forward passes of its mini-batch, the strategy's terms of each sample
    all-reduce    how many samples each term has on all ranks, who has any, which buffers changed, who failed
    every rank    each term over that number, backward
    all-reduce    gradients, buffers of the network, losses, failures
    every rank    the same sum: the step is taken, or buffers are put back and all say the same trouble

Two collectives at least, because a term is a mean over the samples of all ranks and these may have unequal
numbers of them. All are made on every rank whatever goes wrong there, so that none waits for one that failed;
but where a device fails nothing can be made on it any more: that ends the rank, and with it its generation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.gpu_arithmetic import said_of_network
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.module_state import ModuleBuffers, count_of, numbers_of, shaped_as
from rehearsal_kit.learning.packed_sum import PackedSum
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.strategies.losses import Loss, supervised_loss
from rehearsal_kit.learning.strategies.strategy import AugmentedBatch, Part, Strategy, Term

TERMS = 16
"""Most terms that a strategy's loss may have: the ranks tell each other of so many, used or not."""
Averages = tuple[Mapping[str, torch.Tensor] | None, Mapping[str, torch.Tensor] | None]
"""The average of the weights and the quicker one, each None unless the loss depends on it."""


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


@dataclass(frozen=True)
class _Asked:
    """One step of this rank."""

    batch: MiniBatch
    signature: Signature
    strategy: Strategy
    seed: int
    present: Mapping[str, torch.Tensor]
    """Which classes are present, as `AugmentedBatch` has it."""
    averages: Averages


@dataclass
class _Own:
    """What this rank has computed by itself."""

    terms: Sequence[Term]
    outputs: Samples
    samples: int
    """That went through the network."""
    changed: torch.Tensor
    """Whether the network has changed each of its buffers: bool (buffer,)."""
    seconds: float
    error: str = ""
    replayed: torch.Tensor | None = None
    """Loss of each representative, where it is asked for."""


@dataclass(frozen=True)
class _Told:
    """What the ranks have told each other after their forward passes; the same on all of them."""

    failed: bool
    counts: list[int]
    """Samples of each term, over all ranks."""
    having: list[int]
    """The ranks that had samples, in order."""
    changed: list[bool]
    """Which buffers of the network any rank has changed."""


class JointStep:
    """Computes steps of one network. Every rank makes the same collectives, whatever goes wrong on it."""

    def __init__(
        self, network: torch.nn.Module, forward: ForwardPass, *, device: str, groups: ProcessGroups
    ) -> None:
        self._network = network
        self._forward = forward
        self._device = device
        self._groups = groups
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._persistent = frozenset(network.state_dict())

    def of(
        self,
        batch: MiniBatch,
        signature: Signature,
        *,
        strategy: Strategy,
        seed: int,
        averages: Averages = (None, None),
    ) -> tuple[Stepped, torch.Tensor | None]:
        """What the step has come to, and the gradient to take it with, (number,); None after trouble.

        Buffers of the network are then those of all ranks, or as they were before. RankError if no rank has
        a sample.
        """
        buffers = ModuleBuffers(self._network, persistent=self._persistent)
        present = self._present(batch.new, signature) if strategy.asks_present else {}
        own = self._computed(_Asked(batch, signature, strategy, seed, present, averages), buffers)
        told = self._meeting(own)
        if not told.failed and not any(told.counts):
            raise RankError("a step was taken in which no rank had a sample.")
        stepped, gradient = _failed(own), None
        if not told.failed:
            stepped, gradient = self._summed(own, told, strategy=strategy, buffers=buffers)
        if gradient is None:
            buffers.put_back()
        return stepped, gradient

    # This rank ------------------------------------------------------------------------------------------

    def _computed(self, asked: _Asked, buffers: ModuleBuffers) -> _Own:
        began = time.perf_counter()
        unchanged = torch.zeros(len(buffers), dtype=torch.bool)
        batch, signature, strategy = asked.batch, asked.signature, asked.strategy
        try:
            # Before the pass in training mode: some networks make it anew on the way back.
            averaged, plastic = (
                {} if weights is None else self._forward.averaged(batch.replayed, signature, weights)
                for weights in asked.averages
            )
            parts = self._forward.train(batch, signature, apart=strategy.separate, seed=asked.seed)
            new, replayed, distilled = parts
            # A copy: a loss may work in place on what it is given.
            outputs = {
                name: new.outputs[name].detach().clone() for name in signature.outputs if name in new.outputs
            }
            asked_for = batch.asks_losses and any(map(len, batch.replayed.values()))
            losses = _losses_of(replayed, strategy) if asked_for else None
            terms = strategy.terms(
                AugmentedBatch(
                    new=new,
                    replayed=replace(replayed, averaged=averaged, plastic=plastic),
                    distilled=distilled,
                    tasks=batch.tasks,
                    present=asked.present,
                )
            )
            if len(terms) > TERMS:
                raise SettingsError(f"{strategy.name} has {len(terms)} terms; it may have {TERMS}.")
            samples = sum(len(part[signature.inputs]) for part in batch.parts if part)
            changed = buffers.look()
        except Exception as error:  # the other ranks must learn of it, not wait for this one
            raise_of_device(error)
            seconds = time.perf_counter() - began
            return _Own([], {}, samples=0, changed=unchanged, seconds=seconds, error=said_of_network(error))
        seconds = time.perf_counter() - began
        return _Own(terms, outputs, samples, changed=changed, seconds=seconds, replayed=losses)

    def _backward(
        self, own: _Own, told: _Told, *, apart: bool, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The terms of the loss, (term,), and the gradients by all trained parameters, (value, number).

        A value is a term, or, unless `apart`, their sum. Zeros after an error, which is then in `own`.
        """
        try:
            scaled = self._scaled(own, told)
            values = scaled if apart else [torch.stack(scaled).sum()]
            gradients = torch.stack([self._gradient(value, dtype) for value in values])
            return torch.stack(scaled).detach(), gradients
        except Exception as error:  # the other ranks wait for a sum of this size
            raise_of_device(error)
            own.error = said_of_network(error)
        rows = len(told.counts) if apart else 1
        size = sum(count_of(parameter) for parameter in self._parameters)
        nothing = torch.zeros(len(told.counts), device=self._device)
        return nothing, torch.zeros(rows, size, dtype=dtype, device=self._device)

    def _scaled(self, own: _Own, told: _Told) -> list[torch.Tensor]:
        # Each term, divided by the number of its samples on all ranks before the backward pass: terms count
        # different samples, and one sum over the ranks must do for all of them.
        counts = torch.tensor(told.counts, dtype=torch.float32, device=self._device).clamp(min=1)
        return [
            term.weight * term.values.float().sum() / count
            for term, count in zip(own.terms, counts, strict=True)
        ]

    def _gradient(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        parts: Sequence[torch.Tensor | None] = [None] * len(self._parameters)
        if value.requires_grad:  # not where this rank has no sample for it
            parts = torch.autograd.grad(value, self._parameters, allow_unused=True)
        found = zip(self._parameters, parts, strict=True)
        return torch.cat([numbers_of(torch.zeros_like(p) if g is None else g).to(dtype) for p, g in found])

    # All ranks ------------------------------------------------------------------------------------------

    def _present(self, new: Samples, signature: Signature) -> dict[str, torch.Tensor]:
        """Which classes are among the new samples of all ranks, by name of the target: bool (class,)."""
        classes = signature.classes
        if not classes:
            return {}
        vector = PackedSum(classes, dtype=torch.int64, device=self._device)
        own = {n: [torch.bincount(new[n].long().cpu(), minlength=count)] for n, count in classes.items()}
        total = self._groups.sum(vector.pack(own))
        return {name: counts > 0 for name, counts in vector.unpack(total).items()}

    def _meeting(self, own: _Own) -> _Told:
        ranks, counts = self._groups.ranks, [len(term.values) for term in own.terms]
        sizes = {
            "failed": 1,
            "terms": 1,
            "squared terms": 1,
            "having": ranks,
            "counts": TERMS,  # as many as there may be: the ranks do not know yet that they agree
            "changed": len(own.changed),
        }
        vector = PackedSum(sizes, dtype=torch.int64, device=self._device)
        packed = vector.pack(
            {
                "failed": [bool(own.error)],
                "terms": [len(counts)],
                "squared terms": [len(counts) ** 2],
                "having": [rank == self._groups.rank and own.samples > 0 for rank in range(ranks)],
                "counts": [*counts, *[0] * (TERMS - len(counts))],
                "changed": [own.changed],
            }
        )
        # From a GPU as a whole: every copy of a part would wait for the device once more.
        parts = vector.unpack(self._groups.sum(packed).cpu())
        told = {name: part.tolist() for name, part in parts.items()}
        (failed,), (terms,), (squares,) = told["failed"], told["terms"], told["squared terms"]
        if not failed and terms**2 != ranks * squares:  # equal exactly if all ranks have equally many
            failed = ranks
            own.error = (
                f"the strategy gave {len(counts)} terms on rank {self._groups.rank} and another number "
                "elsewhere; it must always give equally many, also for parts without samples."
            )
        return _Told(
            failed=bool(failed),
            counts=told["counts"][: len(counts)],
            having=[rank for rank, has_samples in enumerate(told["having"]) if has_samples],
            changed=[bool(count) for count in told["changed"]],
        )

    def _summed(
        self, own: _Own, told: _Told, *, strategy: Strategy, buffers: ModuleBuffers
    ) -> tuple[Stepped, torch.Tensor | None]:
        # One flat sum for gradients, buffers and loss. DistributedDataParallel would rebuild its buckets
        # after the first step and add in another order after a restart; this adds in one order.
        began = time.perf_counter()
        means = buffers.means(told.changed)
        dtype = _widest([*self._parameters, *means])
        losses, gradients = self._backward(own, told, apart=strategy.separate, dtype=dtype)
        vector = self._layout(gradients.numel(), means, terms=len(told.counts), dtype=dtype)
        packed = vector.pack(
            {
                "gradients": [gradients],
                "buffers": self._shares(own, told, means=means, dtype=dtype),
                "losses": [losses],
                "failed": [torch.full((1,), float(bool(own.error)), dtype=dtype, device=self._device)],
                "seconds": [self._at_this_rank(own.seconds + time.perf_counter() - began, dtype)],
            }
        )
        parts = vector.unpack(self._groups.sum(packed))
        rows = parts["gradients"].view(gradients.shape)
        gradient = strategy.direction(rows) if strategy.separate else rows[0]
        numbers = torch.cat([parts["losses"], gradient.norm()[None], parts["failed"]])  # read at once, too
        *values, norm, any_failed = numbers.tolist()
        if any_failed:
            return _failed(own), None
        trouble = _trouble(values, norm)
        names = [term.name for term in own.terms]
        stepped = Stepped(
            dict(zip(names, values, strict=True)),
            own.outputs,
            trouble,
            guilty=bool(trouble) and not bool(losses.isfinite().all()),
            busy=tuple(parts["seconds"].tolist()),
            rows=own.samples,
            replayed=own.replayed,
        )
        if trouble:
            return stepped, None
        averaged = parts["buffers"].split([*map(count_of, means)])
        for tensor, part in zip(means, averaged, strict=True):
            tensor.copy_(shaped_as(tensor, part))
        buffers.share(told.changed, self._groups, source=told.having[0])
        return stepped, gradient

    def _layout(
        self, gradients: int, means: Sequence[torch.Tensor], *, terms: int, dtype: torch.dtype
    ) -> PackedSum:
        """What is added up after the backward passes; made anew, for other buffers may change every time."""
        sizes = {
            "gradients": gradients,
            "buffers": sum(map(count_of, means)),
            "losses": terms,
            "failed": 1,
            "seconds": self._groups.ranks,
        }
        return PackedSum(sizes, dtype=dtype, device=self._device)

    def _shares(
        self, own: _Own, told: _Told, *, means: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """What this rank adds to the mean of each buffer, (number,)."""
        shares = [numbers_of(tensor).to(dtype) / len(told.having) for tensor in means]
        if not own.samples:  # what this rank has is of the step before
            return [torch.zeros_like(share) for share in shares]
        return shares

    def _at_this_rank(self, number: float, dtype: torch.dtype) -> torch.Tensor:
        """The number in the place of this rank, and zeros for all others: (rank,)."""
        places = torch.zeros(self._groups.ranks, dtype=dtype, device=self._device)
        places[self._groups.rank] = number
        return places


def _losses_of(part: Part, strategy: Strategy) -> torch.Tensor:
    """The loss of each of these samples by the loss of a strategy, (sample,), detached."""
    # Of copies: a loss may work in place on what it is given.
    outputs, targets = (
        {name: tensor.detach().clone() for name, tensor in each.items()}
        for each in (part.outputs, part.targets)
    )
    loss: Loss = getattr(strategy, "loss", supervised_loss)
    return loss(outputs, targets).detach()


def _failed(own: _Own) -> Stepped:
    trouble = "the network or the strategy failed"
    return Stepped({}, {}, trouble, guilty=bool(own.error), busy=(), failed=True, error=own.error)


def _trouble(values: Sequence[float], norm: float) -> str:
    if not all(map(math.isfinite, values)):
        return "the loss became " + ("NaN" if any(map(math.isnan, values)) else "infinite")
    return "" if math.isfinite(norm) else "the gradient became infinite or NaN"


def _widest(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype that can add up numbers of all of these: single precision, or double where there is any."""
    double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if double else torch.float32
