"""How much memory a family of processes really takes, measured while it works."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import psutil

from rehearsal_kit.base.processes import proportional_bytes

INTERVAL_S = 2.0  # reading the maps of a process takes the kernel some 20 ms


@dataclass
class PeakMemory:
    """The largest sum seen so far, in bytes, of proportional set sizes: shared pages count once."""

    bytes: int = 0
    _enough: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def peak_memory(processes: Callable[[], Iterable[psutil.Process]]) -> Iterator[PeakMemory]:
    """Look at these processes every two seconds in a thread, as long as the block runs."""
    peak = PeakMemory()

    def look() -> None:
        while not peak._enough.wait(INTERVAL_S):
            peak.bytes = max(peak.bytes, sum(map(proportional_bytes, processes())))

    thread = threading.Thread(target=look, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak._enough.set()
        thread.join()
