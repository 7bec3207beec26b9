"""Which operations of torch something takes, and those that have no deterministic version on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

UNREPEATABLE = frozenset(
    {
        *(f"adaptive_max_pool{axes}d_backward" for axes in (2, 3)),
        *(f"_adaptive_avg_pool{axes}d_backward" for axes in (2, 3)),
        "avg_pool3d_backward",
        *(f"fractional_max_pool{axes}d_backward" for axes in (2, 3)),
        *(f"max_unpool{axes}d" for axes in (2, 3)),
        *(f"upsample_{mode}_backward" for mode in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
        *(f"_upsample_{mode}2d_aa_backward" for mode in ("bilinear", "bicubic")),
        *(f"reflection_pad{axes}d_backward" for axes in (1, 2, 3)),
        *(f"grid_sampler_{axes}d_backward" for axes in (2, 3)),
        "_ctc_loss_backward",
        "_embedding_bag_backward",
        "_embedding_bag_dense_backward",
        "put_",
        "put",
        "histc",
        "median",  # with indices
        "nanmedian",
        "kthvalue",
        "nll_loss2d_forward",  # but for those that sum nothing up
        "nll_loss2d_backward",
        "bincount",  # these three of floating numbers
        "cumsum",
        "cumprod",
        "scatter_reduce",  # by product
        "scatter_reduce_",
    }
)
"""By the lists of `torch.use_deterministic_algorithms`, as torch 2.13 has them, without the namespace."""
BUT_FOR_WHOLE_NUMBERS = ("cumsum", "cumprod", "bincount")


class Operations(TorchDispatchMode):
    """While it is entered: the names of all operations of torch, on the way back too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = function._schema.name.partition("::")[2]
        numbers = [each for each in (*arguments, *(named or {}).values()) if isinstance(each, torch.Tensor)]
        whole = not any(each.is_floating_point() for each in numbers)
        if not (whole and name in BUT_FOR_WHOLE_NUMBERS):
            self.seen.add(name)
        return function(*arguments, **(named or {}))

    @property
    def unrepeatable(self) -> list[str]:
        """Those seen that have no deterministic version on CUDA."""
        return sorted(self.seen & UNREPEATABLE)


def on_the_way(network: torch.nn.Module, inputs: torch.Tensor) -> Operations:
    """The operations of a network and of its gradient on a device that is no CPU, where bits must repeat.

    On torch's device "meta", which computes nothing: what a network does on CUDA can be seen without one.
    inputs: (sample, ...).
    """
    network = network.to("meta")
    with Operations() as operations:
        torch.use_deterministic_algorithms(True)
        try:
            outputs = network(inputs.to("meta"))
            outputs = outputs if isinstance(outputs, dict) else {"": outputs}
            loss = torch.stack([output.float().sum() for output in outputs.values()]).sum()
            torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
        finally:
            torch.use_deterministic_algorithms(False)
    return operations
