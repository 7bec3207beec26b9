"""What a measurement prints and writes: aligned tables, and the same as data."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rehearsal_kit.bench.machine import Machine

WIDTH = 110
"""Characters in a line of remarks."""


@dataclass(frozen=True)
class Table:
    """A title, columns, lines, and remarks that belong below.

    A line has a text for each column, or a name and one remark.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """First column to the left, all others to the right."""
        whole = [line for line in (self.columns, *self.lines) if len(line) == len(self.columns)]
        widths = [max(len(line[i]) for line in whole) for i in range(len(self.columns))]
        widths[0] = max(widths[0], *(len(line[0]) for line in self.lines))
        rule = "  ".join("-" * width for width in widths)
        lines = [_aligned(line, widths) for line in (self.columns, *self.lines)]
        return "\n".join(
            [self.title, lines[0], rule, *lines[1:], *textwrap.wrap(" ".join(self.notes), WIDTH)]
        )

    def markdown(self) -> str:
        """The same as a table of Markdown, below its title."""
        rows = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.lines]
        lines = [" | ".join([*row, *[""] * (len(self.columns) - len(row))]) for row in rows]
        parts = [f"**{self.title}**", "\n".join(f"| {line} |" for line in lines), " ".join(self.notes)]
        return "\n\n".join(filter(None, parts))


@dataclass(frozen=True)
class Measured:
    """What one command found."""

    tables: tuple[Table, ...]
    data: Mapping[str, Any]
    """Plain values: lists, numbers, texts."""
    machine: Machine

    def text(self) -> str:
        """All tables, and one line about the machine."""
        return "\n\n".join([*(table.text() for table in self.tables), self.machine.text()])

    def markdown(self) -> str:
        """The same for a text in Markdown."""
        return "\n\n".join([*(table.markdown() for table in self.tables), self.machine.text()])

    def write(self, file: Path) -> None:
        """Everything as JSON, single rounds included."""
        values = {"machine": asdict(self.machine), **self.data}
        file.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first = line[0].ljust(widths[0])
    if len(line) < len(widths):
        return "  ".join([first, *line[1:]])
    return "  ".join([first, *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))])
