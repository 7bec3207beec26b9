"""SHA-256 of a large file by a process of its own, which gives way to everything else on the machine.

In a thread of a rank it would hold up training twice: by Python's lock, which a thread that gives way keeps
while it waits for a processor, and because Linux lets a process that has begun run for milliseconds before
one that wakes up takes its place, however low its priority; only those of the policy SCHED_IDLE go at once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from typing import BinaryIO

from rehearsal_kit.child_processes import child_environment

LOOK_S = 0.2
"""Between two looks at whether it is still wanted."""
_PROGRAM = """
import contextlib, hashlib, os
with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
found, block = hashlib.sha256(), bytearray(2**20)
try:
    with open(0, "rb", buffering=0) as file:
        while count := file.readinto(block):
            found.update(memoryview(block)[:count])
            os.write(1, b".")  # ends this where nobody listens any more
except OSError as error:
    os.write(1, f"!{error.strerror}".encode())
else:
    os.write(1, found.hexdigest().encode())
"""


def digest_aside(stream: BinaryIO, *, go_on: Callable[[], bool]) -> str | None:
    """SHA-256 of an open file from its beginning, in hexadecimal digits; None once `go_on` says no.

    OSError if it cannot be read.
    """
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        _PROGRAM,
    ]  # this interpreter, and nothing but its own modules
    with subprocess.Popen(  # noqa: S603 - nothing in it comes from anywhere else
        command,
        stdin=stream,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(os.environ),
    ) as child:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    said = child.communicate(timeout=LOOK_S)[0].lstrip(b".").decode()
                    break
                if not go_on():
                    return None
        finally:
            child.kill()
    if said.startswith("!"):
        raise OSError(0, said[1:])
    if child.returncode or not said:
        raise OSError(0, f"the process that read it ended with {child.returncode}")
    return said
