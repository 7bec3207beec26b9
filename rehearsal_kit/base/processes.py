"""Processes that may end while they are looked at: each look below answers for those that are still there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A TCP port on which a process takes connections."""

    process: int
    address: str
    port: int


def family(process: int | None = None) -> list[psutil.Process]:
    """A process, by default this one, and all that descend from it; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        head = psutil.Process(process)
        return [head, *head.children(recursive=True)]
    return []


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs: a dead one that nobody has waited for does not."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def words(process: psutil.Process) -> list[str]:
    """Its command line; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def proportional_bytes(process: psutil.Process) -> int:
    """What it takes of the memory, shared pages by halves; 0 if it has ended."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


def listeners(processes: Iterable[psutil.Process]) -> set[Listener]:
    """Every TCP port on which one of these takes connections."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {
                Listener(process=process.pid, address=connection.laddr.ip, port=connection.laddr.port)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
    return found
