"""Whether the rows of a store lie in host memory or on the device: on each rank by itself.

    in host memory ---once it is known what steps take---> on the device, block by block, where there is room
                                                           in host memory for good, elsewhere

A buffer that takes another capacity is asked about anew. The mini-batches are the same.
"""

from __future__ import annotations

from typing import Protocol

import torch

from rehearsal_kit.base.transfers import BackgroundStream
from rehearsal_kit.buffer.device_rows import DeviceRows, RowsOnTheirWay
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.row_memory import HostRows, RowMemory

UNDECIDED, ON_DEVICE, NO_ROOM, NO_PIECE = range(4)
"""Where rows lie: in host memory for now; on the device; in host memory, as the device has too little memory
to spare, or as it had no such piece after all."""


class DeviceRoom(Protocol):
    """What there is on a device for rows that lie there only to be quick; on each rank by itself."""

    @property
    def known_after(self) -> int:
        """Steps after which a device shows what steps take."""

    def is_known(self) -> bool:
        """Whether it has shown that for the task under way."""

    def takes_buffer(self, wanted: int, *, given_back: int = 0) -> bool:
        """Whether so many bytes may lie there; whoever is told so takes them.

        given_back: bytes that lie there still, and will not once these do.
        """

    def rows_per_block(self, row_bytes: int) -> int:
        """How many rows of this size are copied at once."""


class RowPlacement:
    """Gives a store the memory for its rows."""

    def __init__(
        self, layout: RowLayout, *, beside: BackgroundStream, room: DeviceRoom | None = None
    ) -> None:
        """room: None: they lie in host memory, and nobody is asked."""
        self.decided = UNDECIDED
        self._layout = layout
        self._beside = beside
        self._room = room
        self._steps = 0

    def again(self, capacity: int, *, before: int) -> RowMemory:
        """Memory for rows that are to be copied there, as the store takes another capacity than before."""
        if self.decided == ON_DEVICE and self._room is not None and self._room.is_known():
            there = self._there(capacity, given_back=before * self._layout.row_bytes)
            return HostRows(self._layout, capacity) if there is None else there
        self.decided = UNDECIDED
        return HostRows(self._layout, capacity)

    def go_on(self, now: RowMemory, *, count: int, capacity: int) -> RowMemory:
        """Where the rows, of which the first `count` are taken, lie from this step on."""
        room = self._room
        if room is None:
            return now
        if isinstance(now, RowsOnTheirWay):
            there = now.go_on(count, room.rows_per_block(self._layout.row_bytes))
            if there is None:
                return now
            self.decided = ON_DEVICE
            return there
        self._steps += 1
        if self.decided == UNDECIDED and self._steps > room.known_after and room.is_known():
            assert isinstance(now, HostRows)  # noqa: S101 - for the type checker; where else before it is decided
            begun = self._there(capacity)
            if begun is not None:
                self.decided = UNDECIDED
                now = RowsOnTheirWay(now, begun, self._layout, count=count)
                return self.go_on(now, count=count, capacity=capacity)
        return now

    def _there(self, capacity: int, *, given_back: int = 0) -> DeviceRows | None:
        """Memory on the device; or None, and in `decided` why."""
        assert self._room is not None  # noqa: S101 - for the type checker; nobody asks without one
        self.decided = NO_ROOM
        if not self._room.takes_buffer(capacity * self._layout.row_bytes, given_back=given_back):
            return None
        try:
            there = DeviceRows(self._layout, capacity, beside=self._beside)
        except torch.OutOfMemoryError:
            # In no one piece, or taken by others just now: then as where there is less.
            self.decided = NO_PIECE
            return None
        self.decided = ON_DEVICE
        return there
