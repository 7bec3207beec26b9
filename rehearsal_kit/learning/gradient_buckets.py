"""Gradients in fixed buckets, which are added up over the ranks while the backward pass goes on.

    backward pass   last layers  ->  ...  ->  first layers
    bucket 0        complete: launched, added up meanwhile
    bucket 1                   complete: launched
    the last                                    complete: launched, with all else that is added up

In which order numbers are added up decides about their bits, and hangs on which of them share a message and
where in it they lie; not on when it is sent. So buckets follow from the order and the sizes of the parameters
alone, are the same at every step and after every restart, and are launched in their order on every rank.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.memory_format import axes_in_memory
from rehearsal_kit.learning.module_state import count_of, numbers_of, shaped_as

Gradients = Sequence[torch.Tensor | None]
"""The gradient by each parameter; None where the value does not depend on it."""


class GradientBuckets:
    """Which parameters share a bucket: the last of a network are in the first, for they are complete first.

    Within a bucket they lie in the order of the network. Where all are in one, nothing is launched before the
    backward pass is over.
    """

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        device: str,
        most: float | None = None,
        in_memory_order: bool = False,
    ) -> None:
        """most: real numbers in a bucket, or a single parameter that has more; None: all are in one.

        in_memory_order: whether the numbers of a parameter follow each other as in its own memory; else as
        its axes do. Then what it has of a bucket has its strides, as a fused optimizer wants it, and no copy.
        """
        self.parameters = parameters
        self.device = device
        self._in_memory_order = in_memory_order
        self._axes = [axes_in_memory(each) if in_memory_order else None for each in parameters]
        self.cuts = _cuts([*map(count_of, parameters)], most)
        """The parameters of each bucket."""
        self.sizes = [sum(map(count_of, parameters[cut])) for cut in self.cuts]
        """How many real numbers each bucket has."""

    def shaped(self, buckets: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Buckets, each (number,), taken apart: what each parameter has of them, in its shape and dtype."""
        found: list[torch.Tensor] = []
        for cut, numbers in zip(reversed(self.cuts), reversed(buckets), strict=True):
            parameters = self.parameters[cut]
            parts = numbers.split([*map(count_of, parameters)])
            found += map(_shaped, parameters, parts, self._axes[cut])
        return found

    def together(self) -> GradientBuckets:
        """The same parameters, all in one bucket."""
        return GradientBuckets(self.parameters, device=self.device, in_memory_order=self._in_memory_order)

    def fill(self, row: torch.Tensor, gradients: Gradients, cut: slice = slice(None)) -> None:
        """Lay the gradients of a cut into a row, one after the other; zeros where there is none."""
        found = zip(self.parameters[cut], gradients, self._axes[cut], strict=True)
        # Detached: those that a network computes by itself on the way back may have a graph of their own.
        numbers = [
            _numbers(torch.zeros_like(p) if g is None else g.detach(), axes).to(row.dtype)
            for p, g, axes in found
        ]
        torch.cat(numbers, out=row)  # at once: on a GPU the copy of each would be a kernel of its own


class GradientSum:
    """Gradients of one step and, behind them in the last bucket, what else is added up over the ranks.

    Every rank calls `compute` and then `over_all`, also where the first has raised an error of network or
    strategy, or where the rank has no sample: it launches the same buckets in the same order, with zeros for
    what it has not.
    """

    def __init__(
        self,
        buckets: GradientBuckets,
        groups: ProcessGroups,
        *,
        dtype: torch.dtype,
        behind: int,
        rows: int = 1,
    ) -> None:
        """dtype: one that can add up all of the numbers. behind: how many lie behind the gradients. rows:
        gradients that are kept apart; more than one only in a single bucket."""
        self.lost: Exception | None = None
        """What was raised where a bucket was launched: an error of connections, not of the network."""
        self._buckets = buckets
        self._groups = groups
        sizes = [rows * size for size in buckets.sizes]
        self._vectors = [
            torch.empty(size + extra, dtype=dtype, device=buckets.device)
            for size, extra in zip(sizes, [*[0] * (len(sizes) - 1), behind], strict=True)
        ]
        self._parts = [vector[:size] for vector, size in zip(self._vectors, sizes, strict=True)]
        self._behind = self._vectors[-1][sizes[-1] :]
        self._rows = rows
        self._filled = 0
        """Buckets that hold the gradients of this rank, the first ones."""
        self._begun: list[Callable[[], torch.Tensor]] = []
        """What waits for the sum of each bucket that was launched, the first ones."""

    def compute(self, values: Sequence[torch.Tensor]) -> None:
        """The gradient of each value, in a row of its own; buckets are launched as they become complete."""
        if len(self._vectors) > 1:
            (value,) = values
            self._compute_launching(value)
            return
        for row, value in zip(self._parts[0].view(self._rows, -1), values, strict=True):
            self._buckets.fill(row, _gradients(value, self._buckets.parameters))
        self._filled = 1

    def over_all(self, behind: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Sums over all ranks: of each bucket, (number,), its rows one after the other; and of `behind`."""
        for unfilled in self._parts[self._filled :]:
            unfilled.zero_()
        self._behind.copy_(behind)
        self._launch(len(self._vectors) - 1)
        self._groups.sum(self._vectors[-1])
        for wait in self._begun:
            wait()
        return self._parts, self._behind

    def _compute_launching(self, value: torch.Tensor) -> None:
        if not value.requires_grad:  # this rank has no sample for it
            return
        parameters, cuts = self._buckets.parameters, self._buckets.cuts
        numbers = range(len(parameters))
        lacking = [set(numbers[cut]) for cut in cuts]
        bucket_of = {number: bucket for bucket in lacking for number in bucket}
        arrived: dict[int, torch.Tensor | None] = {}
        sent: dict[int, int] = {}
        """The version of each gradient when it was copied into its bucket."""

        def arrive(number: int, gradient: torch.Tensor | None) -> None:
            arrived.setdefault(number, gradient)
            bucket_of[number].discard(number)
            while self._filled < len(cuts) - 1 and not lacking[self._filled]:
                bucket = numbers[cuts[self._filled]]
                sent.update((number, _version(arrived[number])) for number in bucket)
                self._complete([arrived[number] for number in bucket])

        with contextlib.ExitStack() as hooks:
            # On the gradients themselves, not behind `.grad`: an error half way leaves nothing there.
            for number, parameter in enumerate(parameters):
                hook = parameter.register_hook(functools.partial(arrive, number))
                hooks.callback(hook.remove)
            gradients = _gradients(value, parameters)
        for number, version in sent.items():
            if gradients[number] is not arrived[number] or _version(gradients[number]) != version:
                raise SettingsError(
                    "a gradient was sent to the other ranks and was another one at the end of the backward "
                    "pass, as where a network makes a backward pass within it, or where a hook alters the "
                    "gradients of other parameters than its own; give Training(bucket_mib=None): then no "
                    "gradient is sent before all are known."
                )
        while self._filled < len(cuts):
            self._complete(gradients[cuts[self._filled]])

    def _complete(self, gradients: Gradients) -> None:
        """Fill the next bucket with its gradients, and launch it unless it is the last."""
        number = self._filled
        self._buckets.fill(self._parts[number], gradients, self._buckets.cuts[number])
        self._filled += 1
        self._launch(min(self._filled, len(self._vectors) - 1))

    def _launch(self, stop: int) -> None:
        """Launch all before this one that were not yet."""
        for vector in self._vectors[len(self._begun) : stop]:
            try:
                self._begun.append(self._groups.begin_sum(vector))
            except Exception as error:
                self.lost = error
                raise


def _gradients(value: torch.Tensor, parameters: Sequence[torch.Tensor]) -> Gradients:
    if not value.requires_grad:  # this rank has no sample for it
        return [None] * len(parameters)
    return torch.autograd.grad(value, parameters, allow_unused=True)


def _version(gradient: torch.Tensor | None) -> int:
    """Another one as soon as somebody has written to it."""
    return 0 if gradient is None else gradient._version


def _numbers(gradient: torch.Tensor, axes: Sequence[int] | None) -> torch.Tensor:
    return numbers_of(gradient if axes is None else gradient.permute(*axes))


def _shaped(parameter: torch.Tensor, numbers: torch.Tensor, axes: Sequence[int] | None) -> torch.Tensor:
    if axes is None:
        return shaped_as(parameter, numbers)
    return numbers.as_strided(parameter.shape, parameter.stride()).to(parameter.dtype)


def _cuts(sizes: Sequence[int], most: float | None) -> list[slice]:
    """Slices of parameters of these sizes, the last parameters first."""
    cuts, stop, held = [], len(sizes), 0
    for index in reversed(range(len(sizes))):
        if most is not None and held and held + sizes[index] > most:
            cuts.append(slice(index + 1, stop))
            stop, held = index + 1, 0
        held += sizes[index]
    return [*cuts, slice(0, stop)]
