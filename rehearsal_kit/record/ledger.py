"""Append-only files of JSON lines: what a run has been asked for, has decided, and which ranks it had."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rehearsal_kit.base.errors import RunFolderError
from rehearsal_kit.record.run_folder import RunFolder

BLOCK = 2**20
"""Bytes of a ledger that are looked at at once."""


class Ledger:
    """An append-only file of JSON lines; what `append` returned from is on disk, whole.

    A torn last line, which a writer left that was killed, is cut off first.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self._lines, self._end = _whole_lines(self._file)
        os.ftruncate(self._file, self._end)
        self._durable = durable

    def append(self, entry: Mapping[str, Any]) -> int:
        """Add one line; with `durable`, wait until the disk has it. Returns its number, from 0.

        OSError where it cannot be written; nothing of it stays then, so that the next one is whole.
        """
        line = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            if self._durable:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written
        self._lines += 1
        return self._lines - 1

    def close(self) -> None:
        """Close the file; nothing can be appended after."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _whole_lines(file: int) -> tuple[int, int]:
    """How many whole lines a file has, and where the last of them ends; read in blocks."""
    lines = end = place = 0
    while block := os.pread(file, BLOCK, place):
        lines += block.count(b"\n")
        end = place + block.rfind(b"\n") + 1 if b"\n" in block else end
        place += len(block)
    return lines, end


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ledger; a torn last line is ignored.

    RunFolderError if any other line is damaged: what a run has decided must not be guessed.
    """
    entries, damaged = _lines(path)
    if damaged:
        number, why = damaged[0]
        raise RunFolderError(
            f"line {number} of {path} is damaged: {why}. Put back a copy of the file; or give up that line "
            "and all after it, so that the run goes on from its newest checkpoint before it: "
            f"sed -i '{number},$d' {shlex.quote(str(path))}"
        )
    return entries


def last_generation(run: RunFolder) -> int:
    """Number of the newest set of ranks started for a run; 0 if none was. Damaged lines do not count."""
    numbers = (entry.get("generation", 0) for entry in _lines(run.generations)[0])
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    if not path.exists():
        return [], []
    entries: list[dict[str, Any]] = []
    damaged: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError as error:  # also bytes that are no text
            damaged.append((number, str(error)))
            continue
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            damaged.append((number, f"it is {line[:40]!r}, not an object"))
    return entries, damaged
