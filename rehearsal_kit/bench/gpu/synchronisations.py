"""Where the host waits for the device: the lines that torch warns of while it looks for them."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.bench.clock import is_cuda

WARNED = "called a synchronizing"
"""What torch says of each, in `torch.cuda.set_sync_debug_mode("warn")`."""


@dataclass
class Synchronisations:
    """How often which line of Python has made the host wait, in the thread that looks and in others."""

    here: Counter[str] = field(default_factory=Counter)
    """Number by "file:line", in the thread that trains."""
    elsewhere: Counter[str] = field(default_factory=Counter)
    """The same in all other threads: training does not wait for these."""


@contextlib.contextmanager
def heard(device: str) -> Iterator[Synchronisations]:
    """Count until the end. On a CPU nobody says so by himself; what is said all the same is counted."""
    found, thread = Synchronisations(), threading.get_ident()

    def hear(*told: Any, **_: Any) -> None:
        message, _kind, file, line = told[:4]
        if WARNED in str(message):
            lines = found.here if threading.get_ident() == thread else found.elsewhere
            lines[f"{Path(file).name}:{line}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear  # put back at the end, with the filters
        with _looking(device):
            yield found


@contextlib.contextmanager
def _looking(device: str) -> Iterator[None]:
    if not is_cuda(device):
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
