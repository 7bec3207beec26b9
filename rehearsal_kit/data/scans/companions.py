"""Files beside a scan that belong to it: where the beam was, which pixels are bad, what was reconstructed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.files import open_regular
from rehearsal_kit.data.scans.scan_file import ScanFile

TEXT_SUFFIXES = (".csv", ".txt", ".dat", ".tsv")
LARGEST_BYTES = 2**28
"""Of a text file with positions."""


def companion_name(path: Path, pattern: str) -> str:
    """The name of a file beside a scan: {stem} and {number} stand for parts of the scan's own.

    Raises:
        ScanError: {number} for a name without digits, or something else in braces.
    """
    numbers = re.findall(r"\d+", path.stem)
    longest = max(numbers, key=len) if numbers else None
    if "{number}" in pattern and longest is None:
        raise ScanError(f"{path}: its name has no number, which {pattern!r} asks for; name the file itself.")
    try:
        return pattern.format(stem=path.stem, number=longest)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ScanError(
            f"{pattern!r} is no name of a file beside a scan: only {{stem}} and {{number}} may stand in "
            "braces."
        ) from error


def is_text(name: str) -> bool:
    """Whether a file of this name holds a table as text."""
    return Path(name).suffix.lower() in TEXT_SUFFIXES


def table_of(file: ScanFile, name: str) -> NDArray[np.float64]:
    """The numbers of a text file beside a scan, (line, column); lines that begin otherwise are its heading.

    Columns may be parted by commas, semicolons, tabs or blanks.

    Raises:
        NotYetError: there is no such file.
        ScanError: it may not be read, holds no numbers, or its lines differ.
    """
    path = file.place_of(name)
    with open_regular(path) as stream:
        text = stream.read(LARGEST_BYTES + 1)
    if len(text) > LARGEST_BYTES:
        raise ScanError(f"{path}: is larger than {LARGEST_BYTES} bytes, which no table of positions is.")
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append([float(word) for word in re.split(r"[,;\s]+", line.strip().strip(",;"))])
        except ValueError as error:
            if rows:
                raise ScanError(
                    f"{path}: line {number} is {line[:60]!r}; it must hold numbers only."
                ) from error
    if not rows or len({len(row) for row in rows}) > 1:
        widths = sorted({len(row) for row in rows})
        raise ScanError(
            f"{path}: has {len(rows)} lines of numbers, of {widths} columns; all must have as many, and "
            "there must be one for each frame."
        )
    file.know(path)
    return np.array(rows, np.float64)
