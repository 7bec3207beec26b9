"""What is free on a GPU for what lies there only to be quick; all who ask are counted together."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch


class Reading(NamedTuple):
    """Bytes of a device, as torch tells them."""

    free: int
    """That nobody has."""
    kept: int
    """That torch has, used or not."""
    peak: int
    """The most of these that were in use at once since the last beginning."""


class DeviceMemory:
    """Counts for one device. What was promised to somebody is not free for the next who asks.

    That has to be counted here: what lies where the results of a step lay shows only in the next step, which
    then takes more.

    read: what torch tells now. restart: has it tell the most of what follows. Any thread may call.
    """

    def __init__(self, read: Callable[[], Reading], restart: Callable[[], None]) -> None:
        self._read = read
        self._restart = restart
        self._lock = threading.Lock()
        self._expected = 0
        self.known = False
        """Whether somebody has asked since the last beginning: after enough steps to know the most."""

    def begin(self) -> None:
        """What steps take is to be found anew, as another task begins."""
        with self._lock:
            self._restart()
            self._expected, self.known = 0, False

    def free(self) -> int:
        """What nobody has, and what torch keeps though no step since the beginning has needed it.

        So what the task before had, and torch keeps, is room for the next one.
        """
        with self._lock:
            self.known = True
            reading = self._read()
            return reading.free + reading.kept - max(reading.peak, self._expected)

    def promise(self, wanted: int) -> None:
        """Somebody is going to take so many bytes, and to keep them."""
        with self._lock:
            self._expected = max(self._read().peak, self._expected) + wanted


@functools.cache
def device_memory(device: str) -> DeviceMemory:
    """That of a GPU: one for all that lies there by this process."""

    def read() -> Reading:
        free, _ = torch.cuda.mem_get_info(device)
        return Reading(free, torch.cuda.memory_reserved(device), torch.cuda.max_memory_allocated(device))

    return DeviceMemory(read, lambda: torch.cuda.reset_peak_memory_stats(device))
