"""How parameters lie in memory: by channels, where a GPU computes convolutions of short numbers.

Its units for those take pixel by pixel all channels; of images that lie channel by channel each convolution
would make such ones first, and turn its result around again.
"""

from __future__ import annotations

import torch
from torch import nn

from rehearsal_kit.learning.networks.network import is_ours


def lies_by_channels(device: str, *, bfloat16: bool) -> bool:
    """Whether weights of convolutions are to lie by channels; never on a CPU, whose bits would be others."""
    return device.startswith("cuda") and bfloat16


def lay_by_channels(network: nn.Module) -> None:
    """Have the weights of all convolutions of our networks in it lie by channels; their numbers stay.

    What comes out of such a convolution lies so, too. Networks of others may take it apart by `view`, which
    is an error then: theirs lie as their owners have them.
    """
    ours = [part for part in network.modules() if is_ours(type(part))]
    for part in (each for own in ours for each in own.modules()):
        if isinstance(part, nn.Conv2d):
            # Also of a single channel, where it would pass for either: its strides say what comes out.
            by_channels = torch.empty_like(part.weight.data, memory_format=torch.channels_last)
            part.weight.data = by_channels.copy_(part.weight.data)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its numbers lie one behind the other, in whatever order: so does what is made like it."""
    return torch.empty_like(tensor).stride() == tensor.stride()


def axes_in_memory(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Its axes from the one with the longest strides on; None where that is their order, or there is none."""
    strides = tensor.stride()
    if strides == torch.empty(tensor.shape, device="meta").stride() or tensor.is_complex():
        return None
    return tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis])) if is_dense(tensor) else None


def laid_out_as(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values of a parameter's shape, in memory as that is: a fused optimizer goes through both at once."""
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter, dtype=values.dtype, requires_grad=False).copy_(values)
