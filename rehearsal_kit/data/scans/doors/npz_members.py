"""The arrays of an .npz archive, each known by its header until its values are asked for."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.hdf5 import FREE_BYTES, LARGEST_RATIO

SKIPPED_BYTES = 2**24
"""What is read over at once on the way to a frame; archives know no other way."""
KEPT_BYTES = 2**28
"""What was read whole is kept while its file is open if it is no larger: where the last axis is that of the
frames, it would be read again for every one."""


@dataclass(eq=False)
class NpzMember:
    """One array of an archive; rows of its first axis can be read without the rest.

    An archive is read from its beginning only, so what was read last is kept open for what follows it.
    """

    archive: zipfile.ZipFile
    name: str
    """Name of the array, without .npy."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    _stream: IO[bytes] | None = None
    _next: int = 0
    """The row at which that stream is."""
    _whole: NDArray[Any] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Values by what numpy takes as index; a slice of the first axis reads no more than it needs."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        rows = self._rows(first)
        if rows is None:
            return self._all()[key]
        block = self._read(*rows)
        if isinstance(first, slice):
            return block[(slice(None), *rest)]
        return block[0][rest] if rest else block[0]

    def _rows(self, key: Any) -> tuple[int, int] | None:
        """The first row and one past the last that a key asks for; None if that is not how it asks."""
        if self.fortran_order or not self.shape:
            return None
        if isinstance(key, slice):
            first, last, step = key.indices(self.shape[0])
            return (first, max(first, last)) if step == 1 else None
        if isinstance(key, int | np.integer) and 0 <= key < self.shape[0]:
            return int(key), int(key) + 1
        return None

    def _all(self) -> NDArray[Any]:
        if self._whole is not None:
            return self._whole
        with self.archive.open(f"{self.name}.npy") as stream:
            _header(stream, self.name)
            values = np.frombuffer(_exactly(stream, self.nbytes, self.name), self.dtype)
        values = values.reshape(self.shape, order="F" if self.fortran_order else "C")
        if self.nbytes <= KEPT_BYTES:
            self._whole = values
        return values

    def _read(self, first: int, last: int) -> NDArray[Any]:
        each = self.nbytes // self.shape[0] if self.shape[0] else 0
        if self._stream is None or first < self._next:
            self.close()
            self._stream, self._next = self.archive.open(f"{self.name}.npy"), 0
            _header(self._stream, self.name)
        left = (first - self._next) * each
        while left:
            left -= len(_exactly(self._stream, min(left, SKIPPED_BYTES), self.name))
        values = np.frombuffer(_exactly(self._stream, (last - first) * each, self.name), self.dtype)
        self._next = last
        return values.reshape((last - first, *self.shape[1:]))

    def close(self) -> None:
        """Close what was kept open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._whole = None


def members_of(path: Path, archive: zipfile.ZipFile, *, size: int) -> dict[str, NpzMember]:
    """The arrays of an archive by name; nothing in it is ever unpickled.

    size: bytes of the file.

    Raises:
        ScanError: an array of Python objects, or one that claims more than it can hold.
    """
    found = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            shape, fortran_order, dtype = _header(stream, f"{path}: {name}")
        claimed = dtype.itemsize * math.prod(shape)
        if claimed > info.file_size or claimed > max(FREE_BYTES, LARGEST_RATIO * size):
            raise ScanError(
                f"{path}: {info.filename} says that it holds {shape} of {dtype}, {claimed} bytes, in "
                f"{info.file_size} of a file of {size}; write the file anew."
            )
        if dtype.hasobject:
            continue  # as if it were not there: whoever needs it says that it is missing
        found[name] = NpzMember(archive, name, shape, dtype, fortran_order)
    return found


def _header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise ScanError(f"{where} is no array of numpy ({error}); write the file anew.") from error
    return shape, fortran_order, dtype


def _exactly(stream: IO[bytes], count: int, where: str) -> bytes:
    try:
        found = stream.read(count)
    except Exception as error:  # zipfile, zlib and each other way to compress have errors of their own
        raise ScanError(f"{where} cannot be read: {error}; the archive is damaged, copy it anew.") from error
    if len(found) < count:
        raise NotYetError(f"{where} ends after {len(found)} of {count} bytes; its writer has not finished.")
    return found
