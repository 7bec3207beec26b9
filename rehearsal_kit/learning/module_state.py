"""What a network holds besides its parameters: modes, which are its owner's, and buffers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.many_tensors import changes, copies, has_mean, overwrite, put_back


def on_cpu(network: torch.nn.Module) -> torch.nn.Module:
    """The network itself if it lies on the CPU, else a copy there; its owner's stays where it is.

    What was moved to a GPU before could not be read by processes that have none, and would lie on the card
    of others twice.
    """
    tensors = (*network.parameters(), *network.buffers())
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return network
    return copy.deepcopy(network).cpu()


def still_modules(network: torch.nn.Module) -> list[str]:
    """Names of the modules that their owner has put into evaluation mode, such as a frozen batch norm.

    None where every module is in that mode: such a network comes from inference, and was not taken apart.
    """
    named = dict(network.named_modules())
    still = [name for name, module in named.items() if not module.training]
    return still if len(still) < len(named) else []


def frozen_parameters(network: torch.nn.Module) -> list[str]:
    """Names of the parameters that their owner does not want trained."""
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def freeze(network: torch.nn.Module, *, frozen: Sequence[str], still: Sequence[str]) -> None:
    """Make the parts of a network what `frozen_parameters` and `still_modules` said of another copy of it."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    network.train()
    for name in still:
        network.get_submodule(name).training = False


class Modes:
    """Switches a network between training and evaluation; what its owner has put into evaluation stays so."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._still = [network.get_submodule(name) for name in still_modules(network)]

    def train(self) -> None:
        """Put the network into training mode as its owner had it, for a step."""
        self._network.train()  # as a whole: it may have a method of its own that keeps parts as they are
        for module in self._still:
            module.training = False

    def evaluate(self) -> None:
        """Put the network into evaluation mode, for predictions."""
        self._network.eval()


@dataclass(frozen=True)
class _Buffer:
    name: str
    before: torch.Tensor
    """A copy."""
    now: torch.Tensor
    written: bool
    """Whether torch has counted that somebody wrote to it, or put another tensor into its place."""

    @property
    def changed(self) -> bool:
        """Whether its numbers are others than before, which the host reads."""
        (changed,) = changes([self.before], [self.now])
        return bool(changed)


class ModuleBuffers:
    """The buffers of a network around the forward pass of one step.

    What no rank has changed stays as it is, bit for bit. Floating and complex buffers become the mean over
    the ranks that had samples, such as batch norm's running statistics. All others, such as its counter of
    batches, become those of the first rank that had samples: a mean of counters would be none.
    """

    def __init__(self, network: torch.nn.Module, *, persistent: Container[str], by_value: bool) -> None:
        """persistent: names of those that belong to the state of the network, and so to its checkpoints.

        by_value: whether to look at their numbers, which are then read by the host; else what was written to
        counts as changed.
        """
        self._network = network
        self._persistent = persistent
        self._by_value = by_value
        # By name: in the order of the network they would not be alike on all ranks once one was put back.
        named = sorted(network.named_buffers(), key=lambda item: item[0])
        copied = copies([buffer for _, buffer in named])
        self._before = [(name, before) for (name, _), before in zip(named, copied, strict=True)]
        self._writes = {name: (buffer, buffer._version) for name, buffer in named}
        self._now: list[_Buffer] = []
        self._changed: list[bool] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._before)

    def look(self) -> list[bool]:
        """Whether the forward pass has changed each.

        SettingsError where one is gone, or has another shape or dtype: the ranks could not exchange it.
        """
        now = dict(self._network.named_buffers())
        for name, before in self._before:
            came = now.get(name)
            if came is None or (came.shape, came.dtype) != (before.shape, before.dtype):
                raise SettingsError(
                    f"the network's buffer {name} was {_words(before)} before a step and is "
                    f"{'gone' if came is None else _words(came)} after it; it must keep its shape and dtype, "
                    "because the ranks exchange it. Keep what changes its shape in a plain attribute."
                )
        written = frozenset() if self._by_value else self._written(now)
        self._now = [
            _Buffer(name, before, now[name].detach(), written=name in written)
            for name, before in self._before
        ]
        if self._by_value:
            return [each.changed for each in self._now]
        return [each.written for each in self._now]

    def unseen(self) -> list[torch.Tensor]:
        """Whether any of those have changed that count as unchanged by `look`: bool (), for some at a time.

        None where it has looked at numbers. Each rank would go on with other numbers.
        """
        unseen = self._unseen()
        return changes([each.before for each in unseen], [each.now for each in unseen])

    def names_of_unseen(self) -> list[str]:
        """Names of those of `unseen` that have changed; the host reads their numbers."""
        return [each.name for each in self._unseen() if each.changed]

    def means(self, changed: Sequence[bool]) -> list[torch.Tensor]:
        """Those to be averaged, of those that any rank has changed."""
        self._changed = list(changed)
        return [each.now for each in self._chosen(changed) if has_mean(each.now)]

    def share(self, changed: Sequence[bool], groups: ProcessGroups, *, source: int) -> None:
        """Take those that have no mean from one rank: of those that any rank has changed."""
        exact = [each.now for each in self._chosen(changed) if not has_mean(each.now)]
        if not exact:
            return
        own = torch.cat([tensor.flatten().to(torch.int64) for tensor in exact])
        theirs = groups.sum(own if groups.rank == source else torch.zeros_like(own))
        parts = theirs.split([tensor.numel() for tensor in exact])
        overwrite(exact, [part.view_as(tensor) for part, tensor in zip(parts, exact, strict=True)])

    def leave(self, unless: torch.Tensor) -> None:
        """Keep what `means` and `share` have made of them, or put them back: where `unless`, (), is 1."""
        chosen = self._chosen(self._changed)
        put_back([each.now for each in chosen], [each.before for each in chosen], where=unless)

    def put_back(self) -> None:
        """Put each buffer back as before the forward pass, also one gone since or become another tensor."""
        now = dict(self._network.named_buffers())
        for name, before in self._before:
            came = now.get(name)
            if came is not None and (came.shape, came.dtype) == (before.shape, before.dtype):
                with contextlib.suppress(RuntimeError):  # an expanded one cannot be written in place
                    came.detach().copy_(before)  # others may hold it
                    continue
            with contextlib.suppress(AttributeError):  # its module is gone: every step to come will say so
                self._register(name, before)

    def _register(self, name: str, before: torch.Tensor) -> None:
        module, _, own_name = name.rpartition(".")
        owner = self._network.get_submodule(module)
        if hasattr(owner, own_name):
            delattr(owner, own_name)
        owner.register_buffer(own_name, before, persistent=name in self._persistent)

    def _written(self, now: Mapping[str, torch.Tensor]) -> frozenset[str]:
        """Names of the buffers that were written to, as far as torch counts that, or are other tensors."""
        written = set()
        for name, buffer in now.items():
            was, writes = self._writes.get(name, (None, 0))
            if buffer is not was or buffer._version != writes:
                written.add(name)
        for name, module in self._network.named_modules():
            # The kernels of batch norm write statistics that torch does not count; the module counts batches.
            if isinstance(module, _BatchNorm):
                counter, *statistics = (
                    f"{name}.{own}".lstrip(".")
                    for own in ("num_batches_tracked", "running_mean", "running_var")
                )
                counts = module.num_batches_tracked is not None
                if counter in written if counts else module.training:
                    written |= {each for each in statistics if each in now}
        return frozenset(written)

    def _unseen(self) -> list[_Buffer]:
        return [] if self._by_value else [each for each in self._now if not each.written]

    def _chosen(self, changed: Sequence[bool]) -> list[_Buffer]:
        return [each for each, is_changed in zip(self._now, changed, strict=True) if is_changed]


def numbers_of(tensor: torch.Tensor) -> torch.Tensor:
    """All real numbers of a floating or complex tensor in one row: a view where that can be."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()


def count_of(tensor: torch.Tensor) -> int:
    """How many real numbers `numbers_of` gives."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def shaped_as(tensor: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """What `numbers_of` has made a row of: in the shape and dtype of a tensor."""
    if tensor.is_complex():
        return torch.complex(*numbers.to(tensor.real.dtype).view(*tensor.shape, 2).unbind(-1))
    return numbers.view_as(tensor).to(tensor.dtype)


def _words(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
