"""Threads that work beside training give way to it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

NICENESS = 19
"""The least there is: where training wants all of a processor, one part in seventy."""


def step_back() -> None:
    """Have this thread, and no other, wait where the processor is wanted by others; where Linux allows it."""
    if sys.platform == "linux":  # elsewhere a priority is of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
