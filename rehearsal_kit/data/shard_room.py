"""How much memory is free for a rank's shard of a task and its buffer, on its device and pinned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.device_memory import DeviceMemory, device_memory
from rehearsal_kit.buffer.memory_limit import available_bytes

DEVICE_SHARE = 0.25
"""Part of a device's free memory that a shard may take, and a buffer of what is left then. Steps may become
larger, and so may what others have there: what is only there to be quick must not be what they lack."""
HOST_SHARE = 0.5
"""Part of the available host memory in which shards may lie a second time while they are pinned."""
KNOWN_AFTER = 4
"""Mini-batches after which a device shows what steps take: before the first ones nobody knows it."""
BLOCK_BYTES = 16 * MIB
"""Rows that are packed with one mini-batch: some milliseconds."""
PINNED_ROW_BYTES = 12 * 2**10
"""Rows that are worth a copy each: of smaller ones a mini-batch is sooner packed."""


@dataclass(frozen=True)
class ShardRoom:
    """Bytes that are free for one shard, as they are when they are asked for; on each rank by itself.

    The rows of a buffer ask, too, of the device alone: what either of both takes, the other lacks.
    """

    on_device: Callable[[], int]
    in_host: Callable[[], int]
    known_after: int = KNOWN_AFTER
    """Mini-batches that are given out before it is asked."""
    block_bytes: int = BLOCK_BYTES
    """Rows that are packed and moved with one mini-batch; at least one."""
    pinned_row_bytes: int = PINNED_ROW_BYTES
    """The smallest rows that are pinned one by one."""
    counted: DeviceMemory | None = None
    """The device that `on_device` tells of, where that counts what it was asked for."""
    buffers: bool = True
    """Whether a buffer may lie on the device, too."""

    def begin(self) -> None:
        """There is a shard of which no mini-batch was taken yet."""
        if self.counted is not None:
            self.counted.begin()

    def is_known(self) -> bool:
        """Whether the device has shown what steps take with the shard that there is."""
        return self.counted is None or self.counted.known

    def takes_on_device(self, wanted: int, *, given_back: int = 0) -> bool:
        """Whether so many bytes may lie on the device; whoever is told so takes them.

        given_back: bytes that lie there still, and will not once these do.
        """
        takes = wanted < DEVICE_SHARE * (self.on_device() + given_back)
        if takes and self.counted is not None:
            self.counted.promise(wanted)
        return takes

    def takes_buffer(self, wanted: int, *, given_back: int = 0) -> bool:
        """Whether so many bytes of a buffer may lie on the device; as `takes_on_device`."""
        return self.buffers and self.takes_on_device(wanted, given_back=given_back)

    def rows_per_block(self, row_bytes: int) -> int:
        """How many rows of this size are packed and moved with one mini-batch."""
        return max(1, self.block_bytes // row_bytes)

    def takes_pinned(self, rows: int, *, row_bytes: int) -> bool:
        """Whether so many rows may be pinned, beside those that were read."""
        each = self.rows_per_block(row_bytes)
        whole, left = divmod(rows, each)
        wanted = whole * _pinned_bytes(each * row_bytes) + _pinned_bytes(left * row_bytes)
        return wanted < HOST_SHARE * self.in_host()

    @staticmethod
    def of(device: str, *, ranks: int) -> ShardRoom | None:
        """That of a GPU; None for the CPU. ranks: of the run; they may all be on this machine."""
        if not device.startswith("cuda"):
            return None
        counted = device_memory(device)
        return ShardRoom(counted.free, lambda: _free_to_pin(ranks), counted=counted)


def _pinned_bytes(wanted: int) -> int:
    """What torch takes of the host for so many pinned bytes: the next power of two."""
    return 1 << (wanted - 1).bit_length() if wanted else 0


def _free_to_pin(ranks: int) -> int:
    """This rank's part of what the machine has, and what torch keeps pinned of what was given back."""
    # torch 2.6 does not say.
    stats = torch.cuda.host_memory_stats() if hasattr(torch.cuda, "host_memory_stats") else {}
    pinned, used = (int(stats.get(f"{which}_bytes.current", 0)) for which in ("allocated", "active"))
    return available_bytes() // ranks + pinned - used
