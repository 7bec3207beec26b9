"""Transfer of samples between the device that trains and the host memory in which they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.offered import Offered
from rehearsal_kit.buffer.row_layout import RowLayout, Samples, Words


@dataclass(frozen=True)
class Delivered:
    """Samples on their way to the device; `take` makes the current stream wait for them."""

    rows: torch.Tensor
    samples: dict[str, torch.Tensor]
    nothing: Samples
    """No sample, of the same fields, on the same device."""
    event: torch.cuda.Event | None = None

    def take(self) -> dict[str, torch.Tensor]:
        """Named tensors (sample, ...); nobody else holds or writes their memory."""
        if self.event is not None:
            current = torch.cuda.current_stream(self.rows.device)
            current.wait_event(self.event)
            for tensor in (self.rows, *self.samples.values()):
                tensor.record_stream(current)
        return self.samples


class Staging:
    """Copies mini-batches off the device and representatives onto it, beside the training stream.

    With a CUDA device the copies go through pinned memory on a stream of their own, so that neither the
    training stream nor the thread that hands over waits for them. On the CPU they are plain copies.
    """

    def __init__(self, layout: RowLayout, device: str) -> None:
        self._layout = layout
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._nothing = layout.unpack_there(torch.empty((0, layout.words), dtype=torch.int64, device=device))

    def empty(self, count: int) -> torch.Tensor:
        """int64 (row, word): uninitialised rows in host memory, pinned where there is a CUDA device."""
        return torch.empty(
            (count, self._layout.words), dtype=torch.int64, pin_memory=self._stream is not None
        )

    def pinned(self, count: int) -> Words | None:
        """Rows as `empty` makes them, where there is a CUDA device; None where any memory will do."""
        return self.empty(count).numpy() if self._stream is not None else None

    def hand_over(self, samples: Samples, chosen: Rows, *, copy: bool) -> Offered:
        """Copy the chosen samples; the caller may overwrite its tensors at once.

        copy: False for callers that write to these tensors no more: what is in host memory is then copied by
        whoever first asks for them, maybe another thread. SettingsError if they do not fit the layout; where
        samples lie on CUDA or are not copied, values that are not finite are found when they are asked for.
        """
        if all(tensor.is_cpu for tensor in samples.values()):
            # Whoever lends tensors may still put others into its mapping.
            offered = Offered(self._layout, dict(samples), chosen)
            if copy:
                offered()
            return offered
        self._layout.check(samples)
        index = torch.from_numpy(chosen)
        picked = {name: t.detach().index_select(0, index.to(t.device)) for name, t in samples.items()}
        host, event = self._to_host(picked)
        return Offered(self._layout, host, np.arange(len(chosen)), ready=event.synchronize)

    def deliver(self, rows: torch.Tensor) -> Delivered:
        """Send packed rows, int64 (row, word), to the device; they must not be written any more."""
        if self._stream is None:
            return Delivered(rows, self._layout.unpack(rows.numpy()), self._nothing)
        with torch.cuda.stream(self._stream):
            there = rows.to(self._device, non_blocking=True)
            samples = self._layout.unpack_there(there)
            event = torch.cuda.Event()
            event.record(self._stream)
        return Delivered(there, samples, self._nothing, event)

    def _to_host(self, picked: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.cuda.Event]:
        device = next(t.device for t in picked.values() if t.device.type == "cuda")
        stream = self._stream if self._stream is not None else torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        host, event = {}, torch.cuda.Event()
        with torch.cuda.stream(stream):
            for name, tensor in picked.items():
                host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                host[name].copy_(tensor, non_blocking=True)
                if tensor.is_cuda:
                    tensor.record_stream(stream)
            event.record(stream)
        return host, event
