"""What rank 0 sees on disk: files that match a watched pattern become arrivals once they are whole."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rehearsal_kit.commands import Arrived, Watch


def natural_key(path: str) -> list[int | str]:
    """Sorts scan_9 before scan_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def with_digest(arrived: Arrived) -> Arrived:
    """The same arrival with the SHA-256 of its file; OSError if it cannot be read."""
    with open(arrived.path, "rb") as stream:
        return replace(arrived, digest=hashlib.file_digest(stream, "sha256").hexdigest())


def with_known(command: Watch) -> Watch:
    """The same command with the files that match already, where they are not to count."""
    return command if command.existing else replace(command, known=tuple(sorted(glob.glob(command.pattern))))


@dataclass(frozen=True)
class _Seen:
    size: int
    modified: int
    at: float


class Watcher:
    """Looks at a few patterns, at most every `interval_s` seconds.

    A file counts as arrived once its size and time have not changed for `settle_s` seconds: one that is
    still being copied looks like a truncated file and would be set aside for nothing.
    """

    def __init__(self, *, interval_s: float = 0.5, settle_s: float = 0.5) -> None:
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._patterns: list[str] = []
        self._known: set[str] = set()
        self._growing: dict[str, _Seen] = {}
        self._looked = 0.0

    def watch(self, pattern: str, *, known: Iterable[str] = ()) -> None:
        """Look at one more pattern from now on, but not at these files."""
        self._patterns.append(pattern)
        self._known.update(known)

    def know(self, path: str) -> None:
        """This file has arrived already."""
        self._known.add(path)

    def poll(self) -> list[Arrived]:
        """Files that have become whole since the last call, in natural order; empty between two looks."""
        now = time.monotonic()
        if not self._patterns or now - self._looked < self._interval_s:
            return []
        self._looked = now
        found = {path for pattern in self._patterns for path in glob.glob(pattern)} - self._known
        ready = [path for path in sorted(found, key=natural_key) if self._settled(path, now)]
        self._known.update(ready)
        return [Arrived(name=Path(path).stem, path=path) for path in ready]

    def _settled(self, path: str, now: float) -> bool:
        try:
            status = os.stat(path)
        except OSError:  # gone again between the look and now
            return False
        seen = self._growing.get(path)
        if seen is None or (seen.size, seen.modified) != (status.st_size, status.st_mtime_ns):
            self._growing[path] = _Seen(status.st_size, status.st_mtime_ns, now)
            return False
        return now - seen.at >= self._settle_s
