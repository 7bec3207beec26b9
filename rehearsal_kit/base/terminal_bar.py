"""A progress bar that an interrupt cannot leave locked."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


class TerminalBar(tqdm):  # type: ignore[misc] # tqdm tells type checkers nothing
    """tqdm, which all bars of this package are made of.

    tqdm has one lock for all bars of a process and keeps it if Ctrl-C comes while a bar is drawn. Whichever
    thread makes or draws a bar next would then wait for ever: the one that hears of a run, and with it the
    end of a command that was interrupted.
    """

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> bool | None:
        """Draw the bar anew; nolock and lock_args: as for tqdm. False where the lock could not be had."""
        if self.disable:
            return None
        if nolock:
            self.display()
            return True
        lock: Any = self.get_lock()
        if lock_args and not lock.acquire(*lock_args):
            return False
        if not lock_args:
            lock.acquire()
        try:
            self.display()
        finally:
            lock.release()
        return True
