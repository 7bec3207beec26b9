"""Copies between the host and a device: from memory that is pinned, and from memory that is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from rehearsal_kit.bench.clock import is_cuda, seconds_of
from rehearsal_kit.bench.gpu.cases import Effort

TO_DEVICE, TO_HOST = "host to device", "device to host"
PINNED, PAGEABLE = "pinned", "pageable"


def measure_copies(device: str, effort: Effort) -> Mapping[str, list[float]]:
    """Bytes per second by direction and kind of host memory, block by block; on a CPU none is pinned."""
    there = torch.empty(effort.copied, dtype=torch.uint8, device=device)
    rates: dict[str, list[float]] = {}
    for kind in (PAGEABLE, PINNED) if is_cuda(device) else (PAGEABLE,):
        host = torch.zeros(effort.copied, dtype=torch.uint8, pin_memory=kind == PINNED)
        for direction, work in _works(host, there).items():
            work()
            found = [seconds_of(work, device, calls=effort.calls) for _ in range(effort.rounds)]
            rates[f"{direction}, {kind}"] = [effort.copied / seconds for seconds in found]
    return rates


def _works(host: torch.Tensor, there: torch.Tensor) -> dict[str, Callable[[], object]]:
    pinned = host.is_pinned() if there.is_cuda else False
    return {
        TO_DEVICE: lambda: there.copy_(host, non_blocking=pinned),
        TO_HOST: lambda: host.copy_(there, non_blocking=pinned),
    }
