"""Loss and gradient of one step over the samples of all ranks; an error on one of them is told to all.

    every rank    forward passes of its mini-batch; meanwhile, where the loss depends on it,
    (all-reduce   which classes are among the new samples)
    every rank    the strategy's terms of each sample
    meeting       how many samples each term has on all ranks, who has any, which buffers changed, who failed
    every rank    each term over that number, backward; meanwhile, where the network is large,
    (all-reduces  gradients of its last layers, bucket by bucket)
    all-reduce    gradients of the first layers, buffers of the network, losses, failures
    every rank    the same sum: the step is taken, or buffers are put back and all say the same trouble

Two collectives at least, because a term is a mean over the samples of all ranks and these may have unequal
numbers of them. All are made on every rank whatever goes wrong there, so that none waits for one that failed;
but where a device fails nothing can be made on it any more: that ends the rank, and with it its generation.

The host reads nothing of a GPU on this way, and so never waits for it: what the step came to lies on the
device until `SummedStep.read`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.gpu_arithmetic import said_of_network
from rehearsal_kit.learning.gradient_buckets import GradientBuckets, GradientSum
from rehearsal_kit.learning.many_tensors import overwrite
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.module_state import ModuleBuffers, count_of, numbers_of, shaped_as
from rehearsal_kit.learning.packed_sum import PackedSum
from rehearsal_kit.learning.present_classes import PresentClasses
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.step_meeting import TERMS, Saying, Told, meeting
from rehearsal_kit.learning.strategies.losses import Loss, supervised_loss
from rehearsal_kit.learning.strategies.strategy import AugmentedBatch, Part, Strategy
from rehearsal_kit.learning.summed_step import OwnPart, SummedStep

Averages = tuple[Mapping[str, torch.Tensor] | None, Mapping[str, torch.Tensor] | None]
"""The average of the weights and the quicker one, each None unless the loss depends on it."""


@dataclass(frozen=True)
class _Asked:
    """One step of this rank."""

    batch: MiniBatch
    signature: Signature
    strategy: Strategy
    seed: int
    present: PresentClasses
    averages: Averages


class JointStep:
    """Computes steps of one network. Every rank makes the same collectives, whatever goes wrong on it."""

    def __init__(
        self,
        network: torch.nn.Module,
        forward: ForwardPass,
        *,
        buckets: GradientBuckets,
        groups: ProcessGroups,
        asynchronous: bool,
    ) -> None:
        """buckets: of the parameters of the network that are trained. asynchronous: whether the host goes on
        while the device computes: it is to read nothing of it.
        """
        self._network = network
        self._forward = forward
        self._device = buckets.device
        self._groups = groups
        self._asynchronous = asynchronous
        self._buckets = buckets
        self._together = buckets.together()
        """The same in one: gradients that are kept apart are needed as a whole."""
        self._persistent = frozenset(network.state_dict())

    def of(
        self,
        batch: MiniBatch,
        signature: Signature,
        *,
        strategy: Strategy,
        seed: int,
        averages: Averages = (None, None),
    ) -> SummedStep:
        """The step, computed; buffers of the network are those of all ranks until it is read.

        RankError if no rank has a sample.
        """
        buffers = ModuleBuffers(self._network, persistent=self._persistent, by_value=not self._asynchronous)
        classes = signature.classes if strategy.asks_present else {}
        present = PresentClasses(batch.new, classes, device=self._device, groups=self._groups)
        own = self._computed(_Asked(batch, signature, strategy, seed, present, averages), buffers)
        present.known()  # also after an error: the others have asked, too
        told = self._meeting(own)
        if told.failed:
            return SummedStep(own, buffers)
        if not any(told.counts):
            raise RankError("a step was taken in which no rank had a sample.")
        return self._summed(own, told, strategy=strategy, buffers=buffers)

    # This rank ------------------------------------------------------------------------------------------

    def _computed(self, asked: _Asked, buffers: ModuleBuffers) -> OwnPart:
        began = time.perf_counter()
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
                    present=asked.present.known(),
                )
            )
            if len(terms) > TERMS:
                raise SettingsError(f"{strategy.name} has {len(terms)} terms; it may have {TERMS}.")
            samples = sum(len(part[signature.inputs]) for part in batch.parts if part)
            changed = buffers.look()
        except Exception as error:  # the other ranks must learn of it, not wait for this one
            raise_of_device(error)
            unchanged, error_said = [False] * len(buffers), said_of_network(error)
            seconds = time.perf_counter() - began - asked.present.waited
            return OwnPart([], {}, samples=0, changed=unchanged, seconds=seconds, error=error_said)
        seconds = time.perf_counter() - began - asked.present.waited
        return OwnPart(terms, outputs, samples, changed=changed, seconds=seconds, replayed=losses)

    def _backward(self, own: OwnPart, told: Told, *, sums: GradientSum, apart: bool) -> torch.Tensor:
        """The terms of the loss, (term,); `sums` has the gradient of each, or, unless `apart`, of their sum.

        Zeros after an error, which is then in `own`.
        """
        try:
            scaled = self._scaled(own, told)
            sums.compute(scaled if apart else [torch.stack(scaled).sum()])
            return torch.stack(scaled).detach()
        except Exception as error:  # the other ranks wait for as many sums, of the same sizes
            raise_of_device(error)
            if sums.lost is not None:  # nothing can be told any more
                raise sums.lost from None
            own.error = said_of_network(error)
        return torch.zeros(len(told.counts), device=self._device)

    def _scaled(self, own: OwnPart, told: Told) -> list[torch.Tensor]:
        # Each term, divided by the number of its samples on all ranks before the backward pass: terms count
        # different samples, and one sum over the ranks must do for all of them.
        # Filled in, not copied: a copy of the host's numbers would wait for all that the device has to do.
        counts = [torch.full((), max(1.0, float(count)), device=self._device) for count in told.counts]
        return [
            term.weight * term.values.float().sum() / count
            for term, count in zip(own.terms, counts, strict=True)
        ]

    # All ranks ------------------------------------------------------------------------------------------

    def _meeting(self, own: OwnPart) -> Told:
        counts = [len(term.values) for term in own.terms]
        said = Saying(counts, own.samples, own.changed, failed=bool(own.error))
        told = meeting(said, self._groups)
        own.samples_everywhere = sum(told.samples)
        if not told.alike:
            own.error = (
                f"the strategy gave {len(counts)} terms on rank {self._groups.rank} and another number "
                "elsewhere; it must always give equally many, also for parts without samples."
            )
        return told

    def _summed(self, own: OwnPart, told: Told, *, strategy: Strategy, buffers: ModuleBuffers) -> SummedStep:
        began = time.perf_counter()
        means = buffers.means(told.changed)
        buckets, rows = (self._together, len(told.counts)) if strategy.separate else (self._buckets, 1)
        dtype = _widest([*buckets.parameters, *means])
        vector = self._layout(means, terms=len(told.counts), dtype=dtype)
        sums = GradientSum(buckets, self._groups, dtype=dtype, behind=sum(vector.sizes.values()), rows=rows)
        losses = self._backward(own, told, sums=sums, apart=strategy.separate)
        packed = vector.pack(
            {
                "buffers": self._shares(own, told, means=means, dtype=dtype),
                "losses": [losses],
                "failed": [self._failures(own, buffers, dtype)],
                "seconds": [self._at_this_rank(own.seconds + time.perf_counter() - began, dtype)],
            }
        )
        gradients, behind = sums.over_all(packed)
        if strategy.separate:
            gradients = [strategy.direction(gradients[0].view(rows, -1))]
        parts = vector.unpack(behind)
        averaged = parts["buffers"].split([*map(count_of, means)])
        overwrite(means, [shaped_as(tensor, part) for tensor, part in zip(means, averaged, strict=True)])
        buffers.share(told.changed, self._groups, source=told.having[0])
        numbers = {
            **{name: parts[name] for name in ("losses", "failed", "seconds")},
            "norms": torch.stack([bucket.norm() for bucket in gradients]),
            "own losses": losses.isfinite().all()[None],
        }
        return SummedStep(own, buffers, gradients=buckets.shaped(gradients), numbers=numbers)

    def _layout(self, means: Sequence[torch.Tensor], *, terms: int, dtype: torch.dtype) -> PackedSum:
        """What is added up behind the gradients; made anew, for other buffers may change every time."""
        sizes = {
            "buffers": sum(map(count_of, means)),
            "losses": terms,
            "failed": 1,
            "seconds": self._groups.ranks,
        }
        return PackedSum(sizes, dtype=dtype, device=self._device)

    def _shares(
        self, own: OwnPart, told: Told, *, means: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """What this rank adds to the mean of each buffer, one after the other: (number,)."""
        numbers = [numbers_of(tensor).to(dtype) for tensor in means]
        if not numbers:
            return []
        shares = torch.cat(numbers) / len(told.having)
        # Without samples, what this rank has is of the step before.
        return [shares if own.samples else torch.zeros_like(shares)]

    def _failures(self, own: OwnPart, buffers: ModuleBuffers, dtype: torch.dtype) -> torch.Tensor:
        """Whether this rank has failed: (1,)."""
        failed = torch.full((1,), float(bool(own.error)), dtype=dtype, device=self._device)
        return torch.stack([failed[0], *(changed.to(dtype) for changed in buffers.unseen())]).sum()[None]

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


def _widest(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The dtype that can add up numbers of all of these: single precision, or double where there is any."""
    double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors)
    return torch.float64 if double else torch.float32
