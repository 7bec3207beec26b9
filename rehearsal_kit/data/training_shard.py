"""A rank's shard of a task as it lies ready for training: its mini-batches are on the device of the run.

    as it was read, in host memory ---block by block---> on the device, where there is room: one gather
    (each mini-batch packed into                         pinned, elsewhere: each sample is fetched from
    pinned memory)                                       where it lies, by one copy

On a CPU it stays as it was read. Where it lies depends on the memory that is free, so on each rank by itself;
the mini-batches are the same. With each mini-batch one block is packed and moved, in the time that the host
has while the device computes: a shard of many gigabytes at once would hold up training for seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

import torch

from rehearsal_kit.base.failure_kinds import Kind, sort_of
from rehearsal_kit.base.transfers import SideStream, host_memory, sent
from rehearsal_kit.buffer.row_layout import IDENTITY, RowLayout, Samples
from rehearsal_kit.data.shard_room import ShardRoom

AS_READ, ON_DEVICE, PINNED = "as it was read", "on the device", "pinned"


class TrainingShard:
    """Named tensors (sample, ...), given out by places in an order; nobody else may write to them.

    group: the field by which the buffer keeps quotas. That and `sample_id` are read by the host at every
    step, so that they stay there; nothing computes with a `sample_id`. room: None: it stays as it was read,
    and so do its mini-batches.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        device: str = "cpu",
        group: str | None = None,
        room: ShardRoom | None = None,
    ) -> None:
        self._count = len(next(iter(samples.values())))
        self.none: Samples = {name: t.new_empty((0, *t.shape[1:])) for name, t in samples.items()}
        """The same fields, of no sample."""
        self._here: Samples = samples
        """What stays in host memory."""
        self._rows: Rows | None = None
        """What the mini-batch taken last came from, where that was packed."""
        self._sources: Iterator[Rows] | None = None
        """What each mini-batch is to come from."""
        if room is not None:
            self._here = {name: t for name, t in samples.items() if name in (IDENTITY, group)}
            rows = {name: t for name, t in samples.items() if name != IDENTITY}
            self._sources = _sources(RowsAsRead(rows, torch.device(device), room=room))

    def __len__(self) -> int:
        """How many samples there are."""
        return self._count

    @property
    def where(self) -> str:
        """Where its samples lie, in words."""
        return AS_READ if self._rows is None else self._rows.where

    def batch(self, order: torch.Tensor, places: slice) -> tuple[Samples, Samples]:
        """The samples that stand at these places of an order, in memory of their own, on the device.

        And what of them the host reads: their group and `sample_id`, at least. order: int64 (place,) in host
        memory; the same tensor until another order begins.
        """
        chosen = order[places]
        here = {name: tensor[chosen] for name, tensor in self._here.items()}
        if self._sources is None:
            return here, here
        self._rows = next(self._sources)
        identities = {name: tensor for name, tensor in here.items() if name == IDENTITY}
        return {**self._rows.batch(order, places), **identities}, here


def _sources(read: RowsAsRead) -> Iterator[Rows]:
    """What each mini-batch comes from, while with each of them one block is moved."""
    for _ in range(read.room.known_after):
        yield read
    there = read.destination()
    whole = False
    if there is not None:
        whole = yield from _while_moved(read, there)
    rows: Rows = there if there is not None and whole else read
    del read, there  # and with it what was read
    while True:
        yield rows


def _while_moved(read: RowsAsRead, there: RowsOnDevice | RowsPinned) -> Generator[Rows, None, bool]:
    """Whether all were moved: where no more memory can be pinned after all they stay as they were read."""
    while len(there) < len(read):
        try:
            block = read.block(len(there))
        except RuntimeError as error:
            if sort_of(error).kind is not Kind.MEMORY:
                raise
            return False
        there.add(block)
        if len(there) < len(read):
            yield read
    return True


class Rows(Protocol):
    """Packed samples that are given out on a device."""

    where: str
    """Where they lie, in words."""

    def batch(self, order: torch.Tensor, places: slice) -> dict[str, torch.Tensor]:
        """The samples at these places of an order: named tensors (sample, ...) on the device."""


class RowsAsRead:
    """Packed mini-batch by mini-batch, from where they were read, into pinned memory."""

    where = AS_READ

    def __init__(self, samples: Samples, device: torch.device, *, room: ShardRoom) -> None:
        self.device = device
        self._samples = samples
        self.room = room
        floating = [name for name, tensor in samples.items() if tensor.is_floating_point()]
        self.layout = RowLayout.of(samples, nan=floating)  # its numbers were looked at when it was read
        self._side = SideStream(device)

    def __len__(self) -> int:
        """How many there are."""
        return len(next(iter(self._samples.values())))

    def batch(self, order: torch.Tensor, places: slice) -> dict[str, torch.Tensor]:
        """Mini-batches, as `Rows` has them."""
        packed = self.packed(order[places])
        return self.layout.unpack_there(self._side.bring(lambda: packed.to(self.device, non_blocking=True)))

    def destination(self) -> RowsOnDevice | RowsPinned | None:
        """Where they are to be moved, by the memory that is free now; None: they had better stay."""
        row_bytes = self.layout.row_bytes
        if self.room.takes_on_device(row_bytes * len(self)):
            # Where it is in no one piece, or was taken by others just now, they lie as where there is less.
            with contextlib.suppress(torch.OutOfMemoryError):
                return RowsOnDevice(self.layout, self.device, len(self))
        if row_bytes >= self.room.pinned_row_bytes and self.room.takes_pinned(len(self), row_bytes=row_bytes):
            return RowsPinned(self.layout, self.device, self.rows_per_block)
        return None

    def packed(self, chosen: torch.Tensor) -> torch.Tensor:
        """int64 (row, word): these samples, in pinned memory of their own."""
        accepted = self.layout.accept(self._samples, chosen.numpy())
        rows = host_memory((len(chosen), self.layout.words), torch.int64, self.device)
        accepted.copy_into(rows.numpy())
        return rows

    def block(self, begin: int) -> torch.Tensor:
        """Those from a place on that are packed at once: int64 (row, word), pinned."""
        return self.packed(torch.arange(begin, min(begin + self.rows_per_block, len(self))))

    @property
    def rows_per_block(self) -> int:
        """How many are packed at once."""
        return self.room.rows_per_block(self.layout.row_bytes)


class RowsOnDevice:
    """All of them on the device: a mini-batch is one gather, by a part of the order, which lies there too."""

    where = ON_DEVICE

    def __init__(self, layout: RowLayout, device: torch.device, count: int) -> None:
        self._layout, self._device = layout, device
        self._side = SideStream(device)
        shape = (count, layout.words)
        self._rows = self._side.bring(lambda: torch.empty(shape, dtype=torch.int64, device=device))
        self._count = 0
        self._order = self._order_there = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """How many were added."""
        return self._count

    def add(self, block: torch.Tensor) -> None:
        """The next rows, pinned: int64 (row, word)."""
        begin, self._count = self._count, self._count + len(block)
        self._side.bring(lambda: self._rows[begin : self._count].copy_(block, non_blocking=True))

    def batch(self, order: torch.Tensor, places: slice) -> dict[str, torch.Tensor]:
        """Mini-batches, as `Rows` has them."""
        if self._order is not order:
            self._order, self._order_there = order, sent(order, self._device)
        return self._layout.unpack_there(self._rows.index_select(0, self._order_there[places]))


class RowsPinned:
    """All of them in pinned memory: each row of a mini-batch is fetched by a copy of its own.

    So the host gathers nothing; a step ahead of the device, it has it fetch beside what that computes.
    """

    where = PINNED

    def __init__(self, layout: RowLayout, device: torch.device, each: int) -> None:
        """each: rows in every block but the last."""
        self._layout, self._device, self._each = layout, device, each
        self._side = SideStream(device)
        self._blocks: list[torch.Tensor] = []

    def __len__(self) -> int:
        """How many were added."""
        return sum(map(len, self._blocks))

    def add(self, block: torch.Tensor) -> None:
        """The next rows, pinned: int64 (row, word)."""
        self._blocks.append(block)

    def batch(self, order: torch.Tensor, places: slice) -> dict[str, torch.Tensor]:
        """Mini-batches, as `Rows` has them."""
        return self._layout.unpack_there(self._side.bring(lambda: self._fetched(order[places].tolist())))

    def _fetched(self, rows: Sequence[int]) -> torch.Tensor:
        there = torch.empty((len(rows), self._layout.words), dtype=torch.int64, device=self._device)
        for target, row in zip(there, rows, strict=True):
            target.copy_(self._blocks[row // self._each][row % self._each], non_blocking=True)
        return there
