"""Files beside a scan that belong to it: where the beam was, which pixels are bad, what was reconstructed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.files import open_regular
from rehearsal_kit.data.scans.doors.scan_file import ScanFile

TEXT_SUFFIXES = (".csv", ".txt", ".dat", ".tsv")
LARGEST_BYTES = 2**28
"""The largest text file with positions that is read."""


MOST_BESIDE = 1_000_000
"""Names in a folder among which files of one scan are looked for."""


@dataclass(frozen=True, eq=False)
class Table:
    """The numbers of a text file."""

    names: tuple[str, ...]
    """Names of its columns, from the line above the numbers; empty where that has not as many words."""
    values: NDArray[np.float64] = field(repr=False)
    """Numbers (line, column)."""


def companion_name(path: Path, pattern: str) -> str:
    """The name of a file beside a scan, in which parts of the scan's own name stand.

    {stem} is that name without suffix, {base} the same without "_master" at its end, {number} the longest run
    of digits in it and {numbers[0]} the first one.

    Raises:
        ScanError: a run of digits for a name that has not so many, or something else in braces.
    """
    numbers = re.findall(r"\d+", path.stem)
    longest = max(numbers, key=len) if numbers else None
    if "{number}" in pattern and longest is None:
        raise ScanError(f"{path}: its name has no number, which {pattern!r} asks for; name the file itself.")
    try:
        return pattern.format(
            stem=path.stem, base=path.stem.removesuffix("_master"), number=longest, numbers=numbers
        )
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ScanError(
            f"{path}: {pattern!r} is no name of a file beside it: only {{stem}}, {{base}}, {{number}} and "
            f"{{numbers[0]}} may stand in braces, and its name has {len(numbers)} numbers."
        ) from error


def beside(file: ScanFile, patterns: Sequence[str]) -> str | None:
    """The name of the first of these files that is there, among those that fit the scan's name."""
    for pattern in patterns:
        try:
            name = companion_name(file.path, pattern)
        except ScanError:
            continue
        if os.path.lexists(file.path.parent / name):
            return name
    return None


def positions_beside(file: ScanFile, told: str | None, patterns: Sequence[str]) -> str:
    """The name of the file with the positions: that which a person told, else the first that is there.

    Raises:
        NotYetError: none is there; says what it may be called.
    """
    name = beside(file, patterns) if told is None else companion_name(file.path, told)
    if name is None:
        raise NotYetError(
            f"{file.path}: there is no file with its positions beside it (looked for {', '.join(patterns)}); "
            "put it there, or name it: ScanReading(positions=...)."
        )
    return name


def series_of(path: Path, pattern: str) -> Mapping[tuple[int, ...], Path]:
    """The files beside a scan's file that are called like it but for some numbers, by these, in their order.

    pattern: a regular expression for the whole name; each of its groups named n1, n2 and so on is a number
    that counts, and all else is the same in all files. Empty if the name is another one.

    Raises:
        ScanError: too many files in the folder.
    """
    own = re.fullmatch(pattern, path.name)
    if own is None:
        return {}
    found: dict[tuple[int, ...], Path] = {}
    with os.scandir(path.parent) as entries:
        for count, entry in enumerate(entries):
            if count > MOST_BESIDE:
                raise ScanError(f"{path.parent}: has more than {MOST_BESIDE} files; move the scan elsewhere.")
            other = re.fullmatch(pattern, entry.name)
            if other is not None and _apart_from_numbers(other) == _apart_from_numbers(own):
                numbers = tuple(int(other[f"n{i}"]) for i in range(1, _counted(other) + 1))
                if numbers in found:
                    raise ScanError(
                        f"{path.parent}: {found[numbers].name} and {entry.name} have the same numbers; keep "
                        "one of them."
                    )
                found[numbers] = Path(entry.path)
    return dict(sorted(found.items()))


def _counted(found: re.Match[str]) -> int:
    return sum(name.startswith("n") and name[1:].isdigit() for name in found.groupdict())


def _apart_from_numbers(found: re.Match[str]) -> tuple[str, ...]:
    """What lies between the numbers that count."""
    ends = [0, *(end for i in range(1, _counted(found) + 1) for end in found.span(f"n{i}"))]
    ends.append(len(found.string))
    return tuple(found.string[first:last] for first, last in zip(ends[::2], ends[1::2], strict=True))


def is_text(name: str) -> bool:
    """Whether a file of this name holds a table as text."""
    return Path(name).suffix.lower() in TEXT_SUFFIXES


def table_of(file: ScanFile, name: str) -> NDArray[np.float64]:
    """The numbers of a text file beside a scan, (line, column); see `read_table`."""
    return read_table(file, name).values


def read_table(file: ScanFile, name: str) -> Table:
    """The table in a text file beside a scan; lines that begin otherwise are its heading, or have a # there.

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
    heading, rows = "", []
    for number, line in enumerate(lines, start=1):
        words = _words(line)
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            if rows and not line.lstrip().startswith("#"):
                raise ScanError(
                    f"{path}: line {number} is {line[:60]!r}; it must hold numbers only."
                ) from error
            heading = heading if rows else line
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1:
        raise ScanError(
            f"{path}: has {len(rows)} lines of numbers, of {widths} columns; all must have as many, and "
            "there must be one for each frame."
        )
    file.know(path)
    names = tuple(_words(heading.strip().lstrip("#")))
    return Table(names if len(names) == widths[0] else (), np.array(rows, np.float64))


def _words(line: str) -> list[str]:
    return re.split(r"[,;\s]+", line.strip().strip(",;"))
