"""Transfer of samples between the device that trains and the memory in which they are stored."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rehearsal_kit.base.transfers import BackgroundStream, fetched, host_memory, sent
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.offered import Offered
from rehearsal_kit.buffer.offered_there import OfferedThere, packed_there
from rehearsal_kit.buffer.row_layout import RowLayout, Samples, Words

Begin = Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Delivered:
    """Samples on their way to the device; `take` makes the current stream wait for them."""

    rows: torch.Tensor
    samples: dict[str, torch.Tensor]
    numbers: Samples
    """The fields of these that are one int64 a sample, in host memory; perhaps others, too."""
    nothing: tuple[Samples, Samples]
    """No sample: `samples` and `numbers` of the same fields, on the same devices."""
    event: torch.cuda.Event | None = None

    def take(self) -> dict[str, torch.Tensor]:
        """Named tensors (sample, ...); nobody else holds or writes their memory."""
        if self.event is not None:
            current = torch.cuda.current_stream(self.rows.device)
            current.wait_event(self.event)
            for tensor in (self.rows, *self.samples.values()):
                tensor.record_stream(current)
        return self.samples

    def begin(self) -> None:
        """Nothing is left to be done for them."""

    def arrived(self) -> Delivered:
        """Themselves."""
        return self


class UnderWay:
    """Samples that ranks exchange between their devices, by the thread that trains and among its sums."""

    def __init__(self, begin: Callable[[], Callable[[], Delivered]]) -> None:
        """begin: begins it, and gives what waits for it."""
        self._begin = begin
        self._wait: Callable[[], Delivered] | None = None

    def begin(self) -> None:
        """Begin it, unless that was done: at the same place among the sums of all ranks."""
        if self._wait is None:
            self._wait = functools.cache(self._begin())

    def arrived(self) -> Delivered:
        """Them, for the current stream, which waits for them; begins it where nobody has."""
        self.begin()
        assert self._wait is not None  # noqa: S101 - for the type checker; it was begun
        return self._wait()

    def settle(self) -> None:
        """Wait for it if it was begun."""
        if self._wait is not None:
            self._wait()


class Staging:
    """Copies mini-batches off the device and representatives onto it, beside the training stream.

    With a CUDA device the copies go through pinned memory on a stream of their own, so that neither the
    training stream nor the thread that hands over waits for them. On the CPU they are plain copies.
    """

    def __init__(self, layout: RowLayout, device: str) -> None:
        self._layout = layout
        self._device = torch.device(device)
        self.beside = BackgroundStream(self._device)
        self._stream = self.beside.stream
        none = torch.empty((0, layout.words), dtype=torch.int64)
        self._nothing = layout.unpack_there(none.to(device)), layout.numbers(none.numpy())

    def empty(self, count: int) -> torch.Tensor:
        """int64 (row, word): uninitialised rows in host memory, pinned where there is a CUDA device."""
        return host_memory((count, self._layout.words), torch.int64, self._device)

    def pinned(self, count: int) -> Words | None:
        """Rows as `empty` makes them, where there is a CUDA device; None where any memory will do."""
        return self.empty(count).numpy() if self._stream is not None else None

    def hand_over_there(self, samples: Samples, chosen: Rows, *, copy: bool) -> OfferedThere:
        """The chosen samples, to be stored on the device.

        copy: as for `hand_over`; where it is made here, nobody waits for it. SettingsError if they do not fit
        the layout; values that are not finite are found when they are asked for.
        """
        self._layout.check(samples)
        offered = OfferedThere(self._layout, samples, chosen=chosen, beside=self.beside)
        if copy:
            offered.pack()
        return offered

    def hand_over(self, samples: Samples, chosen: Rows, *, copy: bool) -> Callable[[], Words]:
        """Copy the chosen samples; the caller may overwrite its tensors at once. Gives rows, (sample, word).

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
        device = next(tensor.device for tensor in samples.values() if not tensor.is_cpu)
        self._layout.check(samples)
        rows = self.fetched(packed_there(self._layout, samples, chosen=chosen, device=device))
        return functools.cache(lambda: self._layout.checked(rows().numpy(), chosen=chosen).rows)

    def deliver(self, rows: torch.Tensor) -> Delivered:
        """Send packed rows, int64 (row, word), to the device; they must not be written any more."""
        if self._device.type == "cpu":
            samples = self._layout.unpack(rows.numpy())
            return Delivered(rows, samples, samples, self._nothing)
        numbers = self._layout.numbers(rows.numpy())
        if self._stream is None:
            there = rows.to(self._device, non_blocking=True)
            return Delivered(there, self._layout.unpack_there(there), numbers, self._nothing)
        with torch.cuda.stream(self._stream):
            there = rows.to(self._device, non_blocking=True)
            samples = self._layout.unpack_there(there)
            event = torch.cuda.Event()
            event.record(self._stream)
        return Delivered(there, samples, numbers, self._nothing, event)

    def delivered_there(self, rows: torch.Tensor, numbers: Words) -> Delivered:
        """Packed rows that lie on the device, made in the order of `beside`, and their `number_table`."""
        with self.beside.entered():
            samples, event = self._layout.unpack_there(rows), self.beside.reached()
        return Delivered(rows, samples, self._layout.named_numbers(numbers), self._nothing, event)

    def exchanged_there(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, numbers: Words, *, begin: Begin
    ) -> UnderWay:
        """Packed rows of the device that are sent, and memory for those that come, both made in `beside`.

        numbers: `number_table` of those that come. begin: begins the exchange after what the current stream
        has been given, and gives what has the current stream wait for it.
        """
        layout, stream, named = self._layout, self._stream, self._layout.named_numbers(numbers)
        # Views are made by the thread that is not waited for; what is converted has to have come.
        views = None if layout.converts else layout.unpack_there(incoming)

        def begun() -> Callable[[], Delivered]:
            with self.beside.entered():
                wait = begin()

            def delivered() -> Delivered:
                wait()
                if stream is not None:
                    current = torch.cuda.current_stream(self._device)
                    # Neither is written anew before the exchange is over, for which that stream waits.
                    outgoing.record_stream(current)
                    incoming.record_stream(current)
                samples = layout.unpack_there(incoming) if views is None else views
                return Delivered(incoming, samples, named, self._nothing)

            return delivered

        return UnderWay(begun)

    def in_host(self, delivered: Delivered) -> torch.Tensor:
        """The packed rows in host memory, int64 (row, word); waits for the device."""
        if delivered.rows.is_cpu:
            return delivered.rows
        with self.beside.entered() if delivered.event is not None else contextlib.nullcontext():
            return fetched(delivered.rows)()

    def empty_there(self, count: int) -> torch.Tensor:
        """int64 (row, word): uninitialised rows on the device, in the order of `beside`."""
        with self.beside.entered():
            return torch.empty((count, self._layout.words), dtype=torch.int64, device=self._device)

    def sent(self, rows: torch.Tensor) -> torch.Tensor:
        """Packed rows that `empty` has made on their way to the device, in the order of `beside`."""
        with self.beside.entered():
            return rows.to(self._device, non_blocking=True)

    def fetched(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """A copy of this tensor in host memory, made beside the training stream; what is returned waits."""
        return fetched(tensor, self._stream)


def rows_of(samples: Samples, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """These rows of samples, int64 (row,) in host memory, each field where it lies; none is waited for."""
    there = {device: sent(rows, device) for device in {tensor.device for tensor in samples.values()}}
    return {name: t.index_select(0, there[t.device]) for name, t in samples.items()}
