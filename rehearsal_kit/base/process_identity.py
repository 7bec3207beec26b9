"""Which process this is, written so that another one can tell later whether it still lives."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SAME_S = 2.0
"""Within which two times of creation are the same: the clock that they come from may have been set since."""


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process of some machine. Its number alone says little: systems give numbers again."""

    host: str
    boot: str
    """Identifier of its machine since that was started last; no two machines have the same."""
    number: int
    created: float
    """Seconds since the epoch."""

    @staticmethod
    def of_this() -> ProcessIdentity:
        """The process that calls."""
        return ProcessIdentity(
            host=socket.gethostname(),
            boot=_boot(),
            number=os.getpid(),
            created=psutil.Process().create_time(),
        )

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine since it was started last."""
        return self.boot == _boot()

    @property
    def is_this(self) -> bool:
        """Whether it is the process that asks."""
        return self.number == os.getpid() and self.is_seen

    @property
    def is_seen(self) -> bool:
        """Whether it can be seen from here to live. One in another container cannot."""
        if not self.is_here:
            return False
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.number)
            alive = found.status() != psutil.STATUS_ZOMBIE
            return bool(alive and abs(found.create_time() - self.created) < SAME_S)
        return False


def _boot() -> str:
    if BOOT_ID.exists():
        return BOOT_ID.read_text().strip()
    return f"{socket.gethostname()} since {psutil.boot_time():.0f}"
