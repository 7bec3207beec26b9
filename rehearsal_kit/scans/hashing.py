"""SHA-256 of a large file by a process of its own, which gives way to everything else on the machine.

In a thread of a rank it shares Python's lock with training: one that gives way may hold it while it waits for
a processor. Where the ranks take all cores wholly, steps are no faster for it (README has the figures).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

from rehearsal_kit.child_processes import child_environment

LOG = logging.getLogger(__name__)
LOOK_S = 0.2
"""Between two looks at whether it is still wanted."""
STUCK_S = 60.0
"""Without a sign of life for so long, the process is taken to be stuck."""
BLOCK = 2**15
"""Short: Linux may let a process of any priority run on until its next system call or its next tick."""
SIGN = 512
"""Blocks between two signs of life: each wakes a thread of the rank, which is one more for Python's lock."""
_PROGRAM = f"""
import contextlib, hashlib, os
with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
found, block = hashlib.sha256(), bytearray({BLOCK})
with open(0, "rb", buffering=0) as file:
    read = 0
    while count := file.readinto(block):
        found.update(memoryview(block)[:count])
        read += 1
        if read % {SIGN} == 0:
            os.write(1, b".")  # ends this where nobody listens any more
os.write(1, found.hexdigest().encode())
"""


def sha256_of(stream: BinaryIO, *, go_on: Callable[[int], bool], aside: bool) -> str | None:
    """SHA-256 of an open file from its beginning, in hexadecimal digits; None once `go_on` says no.

    go_on: told again and again how many bytes are read. aside: by a process of its own, as long as there is
    one that gets on. OSError if the file cannot be read.
    """
    if aside:
        try:
            return _by_a_process(stream, go_on)
        except (OSError, TypeError, ValueError) as error:
            # Says nothing of the file: one that cannot be read is found out below.
            LOG.warning("%s is hashed beside training, not by a process of its own: %s", stream.name, error)
            stream.seek(0)
    found, block, read = hashlib.sha256(), bytearray(BLOCK), 0
    while count := stream.readinto(block):  # type: ignore[attr-defined] # a buffered reader has it
        found.update(memoryview(block)[:count])
        read += count
        if not go_on(read):
            return None
    return found.hexdigest()


def _by_a_process(stream: BinaryIO, go_on: Callable[[int], bool]) -> str | None:
    """ValueError if the process ends, or stands still, before it has said anything."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM]  # nothing but what comes with Python
    with subprocess.Popen(  # noqa: S603 - nothing in it comes from anywhere else
        command,
        stdin=stream,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(os.environ),
        bufsize=0,
    ) as child:
        try:
            assert child.stdout is not None  # noqa: S101 - for the type checker
            said = _heard(child.stdout.fileno(), go_on)
        finally:
            child.kill()
    if said is not None and re.fullmatch(r"[0-9a-f]{64}", said) is None:
        raise ValueError("it has ended or stood still before it had read all")
    return said


def _heard(descriptor: int, go_on: Callable[[int], bool]) -> str | None:
    """What it says in the end; nothing if that does not come, None once `go_on` says no."""
    signs, said, newest = 0, b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while time.monotonic() - newest < STUCK_S:
            if selector.select(LOOK_S):
                came = os.read(descriptor, 2**16)
                if not came:
                    return said.decode()
                signs, said, newest = signs + came.count(b"."), said + came.strip(b"."), time.monotonic()
            if not go_on(signs * SIGN * BLOCK):
                return None
    return ""
