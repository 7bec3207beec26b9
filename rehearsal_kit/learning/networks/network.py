"""What a network offers so that a run folder can make it again, and why one cannot be made so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from rehearsal_kit.learning.networks.registry import NETWORKS, network_class


@runtime_checkable
class Network(Protocol):
    """A torch.nn.Module that was made by `type(network)(**network.arguments)`, but for its weights.

    A run folder keeps the name, the arguments and the weights of a network, and never code or a pickle. From
    them a run is resumed in another kernel, replayed and exported, if the network stands in the registry.
    Whatever else may be a network is given again there, as `network=...`.
    """

    @property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments of its constructor: values that JSON keeps as they are."""


def network_again(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network of the registry once more, with the weights that it begins with."""
    return network_class(name)(**arguments)


def plain_arguments(network: nn.Module) -> Mapping[str, Any] | None:
    """The arguments of a network as a run folder keeps them; None where it has none that JSON can keep.

    None, too, for one of ours that was altered since: what they make would be another network.
    """
    arguments = network.arguments if isinstance(network, Network) else None
    return arguments if _is_plain(arguments) and not _is_altered(network) else None


def why_not_again(network: nn.Module) -> str:
    """Why this network cannot be made again from its run folder alone, in words; empty if it can."""
    kind = type(network)
    if is_ours(kind):
        altered = f"this {kind.__name__} was altered after it was made (layers, their names or dtypes)"
        return altered if _is_altered(network) else ""
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return (
            f"the class {kind.__name__} of the network cannot be imported: write it into a file of its own, "
            "or keep the cell that defines it"
        )
    return f"the class {kind.__name__} of the network, from {kind.__module__}, is not one of ours"


def is_ours(kind: type[nn.Module]) -> bool:
    """Whether this class stands in the registry."""
    return kind.__name__ in NETWORKS and network_class(kind.__name__) is kind


def _is_altered(network: nn.Module) -> bool:
    """Whether a network of ours is not any more what its arguments make, as far as its layers tell."""
    kind = type(network)
    if not is_ours(kind) or not isinstance(network, Network):
        return False
    # With weights: on torch's device "meta" they take no time, but the first use imports for a second.
    again = network_again(kind.__name__, network.arguments)
    return _face(again) != _face(network) or any(map(_is_hooked, network.modules()))


def _face(network: nn.Module) -> tuple[object, ...]:
    """What tells two networks apart: layers, tensors, and which of them are one and the same."""
    parameters = [name for name, _ in network.named_parameters()]
    modules = [name for name, _ in network.named_modules()]
    return repr(network), _kinds(network), parameters, modules


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return "forward" in vars(module) or any(hooks) or bool(module._backward_pre_hooks)


def _kinds(network: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in network.state_dict().items()}


def _is_plain(arguments: object) -> bool:
    try:
        return isinstance(arguments, Mapping) and json.loads(json.dumps(arguments)) == arguments
    except (TypeError, ValueError):
        return False
