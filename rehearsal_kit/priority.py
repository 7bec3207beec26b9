"""Threads that work beside training give way to it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICENESS = 5
"""About a third of what a thread of training gets where both want all of a processor."""


def step_back() -> None:
    """Have this thread, and no other, wait where the processor is wanted by others; where Linux allows it."""
    if sys.platform == "linux":  # elsewhere a priority is of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
