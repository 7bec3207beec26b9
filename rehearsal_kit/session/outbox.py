"""Wishes on their way from a kernel to the coordinator: put in by any thread, taken out by the session's."""

from __future__ import annotations

import contextlib
import queue
import threading

from rehearsal_kit.record.commands import Wish


class Outbox:
    """Takes wishes as long as somebody passes them on; afterwards it says so."""

    def __init__(self) -> None:
        self.last_taken = False
        """Whether no wish will come any more."""
        self._wishes: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = True

    def put(self, wish: Wish) -> bool:
        """Whether this one will be passed on."""
        with self._lock:
            if self._open:
                self._wishes.put(wish)
            return self._open

    def close(self) -> None:
        """None will come after those that are in it."""
        self._wishes.put(None)

    def shut(self) -> list[Wish]:
        """Nobody passes any on from now on; those that are left."""
        with self._lock:
            self._open = False
        return self.taken_out(wait_s=0.0)

    def taken_out(self, *, wait_s: float) -> list[Wish]:
        """All that are in it, in order; waits so long for the first."""
        wishes: list[Wish] = []
        with contextlib.suppress(queue.Empty):
            wish = self._wishes.get(block=wait_s > 0, timeout=wait_s or None)
            while wish is not None:
                wishes.append(wish)
                wish = self._wishes.get_nowait()
            self.last_taken = True
        return wishes
