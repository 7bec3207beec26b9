"""Copies between host memory and a device for which the host does not wait.

A GPU cannot reach ordinary memory by itself: such a copy is made piece by piece while the host stands still,
whatever it was told of not blocking.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence

import torch


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised host memory which the device reaches by itself: pinned where that is a GPU."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor on its way to the device, in memory of its own; itself where it lies there.

    Whoever has it may write to it at once, also where it is pinned already.
    """
    if device.type == "cuda" and tensor.is_cpu:
        tensor = host_memory(tensor.shape, tensor.dtype, device).copy_(tensor)
    return tensor.to(device, non_blocking=True)


def fetched(tensor: torch.Tensor, stream: torch.cuda.Stream | None = None) -> Callable[[], torch.Tensor]:
    """A copy of this tensor in host memory, under way from here on; what is returned waits for it.

    stream: the one of a GPU that copies, beside the current one; None: the current one, in its order.
    """
    host = host_memory(tensor.shape, tensor.dtype, tensor.device)
    if not tensor.is_cuda:
        host.copy_(tensor, non_blocking=True)
        return lambda: host
    current = torch.cuda.current_stream(tensor.device)
    stream = current if stream is None else stream
    stream.wait_stream(current)
    tensor.record_stream(stream)
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(stream)

    def waited() -> torch.Tensor:
        arrived.synchronize()
        return host

    return waited


class SideStream:
    """A stream of a GPU beside the one that computes; where there are none, all is done in its order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream_beside(device) if device.type == "cuda" else None

    def bring(self, copied: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What this makes on the device: under way there, and for the current stream to wait for."""
        if self._stream is None:
            return copied()
        with torch.cuda.stream(self._stream):
            there = copied()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        there.record_stream(current)
        return there


class BackgroundStream:
    """A stream of a GPU for what is done beside training, in its order; elsewhere all is done at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _background_stream(device) if device.type == "cuda" else None

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """While it is entered, this is the current stream of the calling thread."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def reached(self) -> torch.cuda.Event | None:
        """What the current stream of this thread was given up to here; None where nothing has to wait."""
        if self.stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def after(self, event: torch.cuda.Event | None, made: Iterable[torch.Tensor]) -> None:
        """Go on after that event, with what another stream has made by then, as far as it lies there."""
        if self.stream is not None and event is not None:
            self.stream.wait_event(event)
            for tensor in made:
                if tensor.is_cuda:
                    tensor.record_stream(self.stream)


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The one of this device: memory that torch keeps for a stream that nobody uses any more lies idle."""
    return torch.cuda.Stream(device)


@functools.cache
def _background_stream(device: torch.device) -> torch.cuda.Stream:
    """Another one: training waits for all of the one beside it, at every mini-batch."""
    return torch.cuda.Stream(device)
