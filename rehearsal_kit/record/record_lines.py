"""A file of records, one JSON object a line: read in blocks, from either end; what is damaged is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from rehearsal_kit.record.records import Record, from_plain

LOG = logging.getLogger(__name__)
BLOCK = 2**20
"""Bytes that are read at once."""


class RecordLines:
    """Reads on in a file that grows; a torn last line is left until it is whole.

    A line that is no record is said, the first time, and counts as a line.
    """

    def __init__(self, path: Path, *, offset: int = 0, number: int = 0) -> None:
        """offset, number: of the line to begin with."""
        self.path = path
        self.offset = offset
        """Bytes that were read."""
        self.number = number
        """Number of the next line."""
        self.damaged = 0
        """Lines that were left out."""

    def read(self, known: int = 0) -> Iterator[tuple[int, Record | None]]:
        """Numbers and records of the whole lines since the last one that was read; None: damaged.

        known: up to this number, without it, lines are only counted.
        """
        for line in self._lines():
            number = self.number
            self.offset += len(line) + 1
            self.number += 1
            if number >= known:
                yield number, self._record(number, line)

    def _lines(self) -> Iterator[bytes]:
        if not self.path.is_file():
            return
        torn: list[bytes] = []
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            while block := stream.read(BLOCK):
                first, *others = block.split(b"\n")
                torn.append(first)
                if others:
                    yield b"".join(torn)
                    yield from others[:-1]
                    torn = [others[-1]]

    def _record(self, number: int, line: bytes) -> Record | None:
        try:
            return from_plain(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            self.damaged += 1
            if self.damaged == 1:
                LOG.warning(
                    "line %d of %s is damaged and left out, as is any other such line; curves and tables "
                    "lack what it told, the run itself does not need it: %s",
                    number + 1,
                    self.path,
                    error,
                )
            return None


def lines_backwards(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, the last one first; none if there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        place = stream.seek(0, 2)
        later: list[bytes] = []
        """Pieces of the line whose beginning is not read yet, the last one first."""
        torn = True
        while place:
            begin = max(0, place - BLOCK)
            stream.seek(begin)
            *others, last = stream.read(place - begin).split(b"\n")
            place = begin
            later.append(last)
            if others:
                if not torn:
                    yield b"".join(reversed(later))
                torn = False  # what stands behind the last end of a line is no whole one
                yield from reversed(others[1:])
                later = [others[0]]
        if later and not torn:
            yield b"".join(reversed(later))
