"""Files that arrive: which ones a pattern means, their order, and what tells that one is what it was."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from rehearsal_kit.base.digests import DIGITS
from rehearsal_kit.base.errors import ScanError, TaskError
from rehearsal_kit.base.natural_order import in_natural_order
from rehearsal_kit.data.scans.doors.files import Facts, digest_of, facts_of
from rehearsal_kit.record.commands import Arrived

# Patterns -----------------------------------------------------------------------------------------------


def matching(pattern: str) -> list[str]:
    """What a pattern matches now, in natural order.

    A pattern that is the name of something is that name, and so is the longest beginning of it that is the
    name of a folder: brackets and stars are allowed in names.
    """
    return in_natural_order(unordered(pattern))


def unordered(pattern: str) -> list[str]:
    """The same in any order: much less work in a folder of very many files."""
    if os.path.lexists(pattern):
        return [pattern]
    folder, rest = _parted(pattern)
    return [os.path.join(folder, name) for name in glob.glob(rest, root_dir=folder)]


def require_possible(pattern: str) -> None:
    """ScanError if a pattern can match nothing, because it leads through a folder that is not there."""
    folder, rest = _parted(pattern)
    names = rest.split(os.sep)
    # Brackets alone are nearly always part of a name; with a star or a question mark a folder may come later.
    if len(names) > 1 and not set(names[0]) & {"*", "?"} and not glob.glob(names[0], root_dir=folder):
        raise ScanError(
            f"cannot watch {pattern}: the folder {os.path.join(folder, names[0])} does not exist on this "
            "machine; check its name, or make it first."
        )


def _parted(pattern: str) -> tuple[str, str]:
    """The longest beginning that is a folder, as it stands, and the rest of a pattern."""
    path = Path(pattern)
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return str(folder), str(path.relative_to(folder))


# What arrived -------------------------------------------------------------------------------------------


def with_digest(arrived: Arrived, *, go_on: Callable[[int], bool] | None = None) -> Arrived:
    """The same arrival with the SHA-256 of its files and what tells that they are unchanged.

    go_on: as `digest_of` has it.

    Raises:
        NotYetError: no such file, or it changed while it was read.
        ScanError: no regular file, or it cannot be read.
    """
    digest, facts = _digest_of_all(arrived, go_on=go_on)
    return replace(arrived, digest=digest, size=facts.size, modified=facts.modified)


def require_as_it_arrived(arrived: Arrived, known: Facts | None = None) -> Facts:
    """The facts of its files, which are what they were when it arrived; cheap unless they were moved or
    copied.

    known: other facts under which its content was found to be the same.

    Raises:
        TaskError: its content has changed.
        NotYetError, ScanError: it cannot be read any more.
    """
    facts = _together([facts_of(path) for path in files_of(arrived)])
    if facts in (known, Facts(arrived.size, arrived.modified)) or not arrived.digest:
        return facts
    digest, facts = _digest_of_all(arrived)
    if digest != arrived.digest:
        raise TaskError(
            f"{arrived.path} is not the file that it was: SHA-256 {digest[:DIGITS]}..., but "
            f"{arrived.digest[:DIGITS]}... when it arrived; put the old one back, or submit it again to take "
            "it as new."
        )
    return facts


def files_of(arrived: Arrived) -> list[str]:
    """The files of what arrived, its own first."""
    folder = os.path.dirname(os.path.realpath(arrived.path))
    return [arrived.path, *(os.path.join(folder, name) for name in arrived.files)]


def beside(path: str | Path, others: Iterable[Path]) -> tuple[str, ...]:
    """Other files by their place from one of them: what is moved or copied together stays together."""
    folder = os.path.dirname(os.path.realpath(path))
    return tuple(
        os.path.relpath(other, folder) if other.is_relative_to(folder) else str(other) for other in others
    )


def _digest_of_all(arrived: Arrived, *, go_on: Callable[[int], bool] | None = None) -> tuple[str, Facts]:
    """SHA-256 of one file, or of the digests of several, with the facts that belong to it."""
    found = [digest_of(path, go_on=go_on) for path in files_of(arrived)]
    facts = _together([each for _, each in found])
    if len(found) == 1:
        return found[0][0], facts
    return hashlib.sha256("\n".join(digest for digest, _ in found).encode()).hexdigest(), facts


def _together(facts: list[Facts]) -> Facts:
    """The facts of several files as one: none of them can change without that it does."""
    return Facts(sum(each.size for each in facts), sum(each.modified for each in facts))


def is_same_file(one: Arrived, other: Arrived) -> bool:
    """Whether two arrivals are about the same part of one file, by whatever names, with the same content."""
    parts = [(each.digest, each.region, each.held_out) for each in (one, other)]
    if parts[0] != parts[1] or not one.digest:
        return False
    try:
        return one.path == other.path or os.path.samefile(one.path, other.path)
    except OSError:  # one of them is not there any more
        return False
