"""Time on a device: what is under way there has ended before the clock is read."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def is_cuda(device: str) -> bool:
    """Whether this is a GPU."""
    return device != "cpu"


def now(device: str) -> float:
    """Seconds of a clock, once the device has nothing to do any more."""
    if is_cuda(device):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: str, *, calls: int = 1) -> float:
    """Seconds of a call, mean over calls in a row; the device is waited for at both ends only."""
    began = now(device)
    for _ in range(calls):
        work()
    return (now(device) - began) / calls
