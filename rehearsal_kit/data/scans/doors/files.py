"""The door for every file that comes from elsewhere: only regular files are opened, and none is waited for.

A named pipe would be waited for until somebody writes to it, a device may never end, and either may lie in a
folder that others can write to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rehearsal_kit.base.errors import NotYetError, ScanError

BLOCK = 2**18
"""Bytes that are hashed at once; Python's lock is free meanwhile."""
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Facts:
    """What tells without reading it that a file is what it was."""

    size: int
    """Bytes."""
    modified: int
    """When its content was written last, in nanoseconds since the epoch."""

    @staticmethod
    def of(status: os.stat_result) -> Facts:
        """The facts in what `os.stat` returned."""
        return Facts(status.st_size, status.st_mtime_ns)


def open_regular(path: str | Path) -> BinaryIO:
    """The file, open for reading bytes.

    Raises:
        NotYetError: there is no such file.
        ScanError: it is no regular file, or may not be read.
    """
    try:
        # Asked first: opening a device may already do something to it. A pipe that takes the place of the
        # file in between is not waited for.
        _require_regular(path, os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotYetError(
            f"{path}: there is no such file ({error.strerror}); check its name, or put it back where it was."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        words = error.strerror if isinstance(error, OSError) else error
        raise ScanError(f"{path}: cannot be opened: {words}; check its name and who may read it.") from error
    try:
        _require_regular(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def facts_of(path: str | Path) -> Facts:
    """Size and time of a file, without opening it; NotYetError if there is none, ScanError if it is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise NotYetError(
            f"{path}: there is no such file ({error.strerror}); put it back where it was."
        ) from error
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ScanError(f"{path}: cannot be looked at: {words}.") from error
    _require_regular(path, status)
    return Facts.of(status)


def digest_of(path: str | Path, *, go_on: Callable[[int], bool] | None = None) -> tuple[str, Facts]:
    """SHA-256 of a file, in hexadecimal digits, and the facts that belong to it.

    go_on: told again and again how many bytes are read, says whether the rest is still wanted: so a large
    file does not hold up the end of a thread.

    Raises:
        NotYetError: there is no such file, it changed while it was read, or `go_on` said no.
        ScanError: it cannot be read.
    """
    with open_regular(path) as stream:
        before = Facts.of(os.fstat(stream.fileno()))
        try:
            found = _sha256_of(stream, go_on or (lambda read: True))
        except OSError as error:
            raise ScanError(f"{path}: cannot be read: {error.strerror}; copy it anew.") from error
        after = Facts.of(os.fstat(stream.fileno()))
    if found is None:
        raise NotYetError(f"{path}: was not read to its end.")
    if before != after:
        raise NotYetError(f"{path}: changed while it was read; its writer has not finished.", held=True)
    return found, after


def _require_regular(path: str | Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ScanError(
            f"{path}: is {_KINDS.get(kind, 'something else')}, and only files are read; give the name of a "
            "file."
        )


def _sha256_of(stream: BinaryIO, go_on: Callable[[int], bool]) -> str | None:
    """SHA-256 of a stream, in hexadecimal digits; None once `go_on` says no."""
    found, block, read = hashlib.sha256(), bytearray(BLOCK), 0
    while count := stream.readinto(block):  # type: ignore[attr-defined] # a buffered reader has it
        found.update(memoryview(block)[:count])
        read += count
        if not go_on(read):
            return None
    return found.hexdigest()
