"""The door for .npz and .mat files from elsewhere: numbers only, no more than such a file can hold."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from rehearsal_kit.base.errors import ScanError
from rehearsal_kit.data.scans.doors.files import open_regular
from rehearsal_kit.data.scans.doors.hdf5 import FREE_BYTES, LARGEST_RATIO

Arrays = Mapping[str, NDArray[Any]]


def arrays_of(path: Path) -> Arrays:
    """The arrays of a file by name; nothing in it is ever unpickled.

    Raises:
        NotYetError: no such file.
        ScanError: it cannot be read, or claims more than it can hold.
    """
    with open_regular(path) as plain:
        size = plain.seek(0, 2)
        plain.seek(0)
        try:
            if path.suffix == ".mat":
                from scipy.io import loadmat  # noqa: PLC0415 - every worker would import it at its start

                found = loadmat(plain)
                return {name: value for name, value in found.items() if not name.startswith("__")}
            _require_possible(path, plain, size)
            plain.seek(0)
            with np.load(plain, allow_pickle=False) as archive:
                return dict(archive)
        except ScanError:
            raise
        except Exception as error:  # zipfile, zlib, struct, numpy and scipy each have their own
            raise ScanError(
                f"{path}: cannot be read as {path.suffix or 'a file without suffix'} ({error}); .npz without "
                "pickled objects and MATLAB v5 .mat are known."
            ) from error


def _require_possible(path: Path, plain: BinaryIO, size: int) -> None:
    """numpy makes room for what a header says before it reads the first number."""
    with zipfile.ZipFile(plain) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                version = npy.read_magic(member)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(member)
            claimed = dtype.itemsize * int(np.prod(shape, dtype=object))
            if claimed > info.file_size or claimed > max(FREE_BYTES, LARGEST_RATIO * size):
                raise ScanError(
                    f"{path}: {info.filename} says that it holds {shape} of {dtype}, {claimed} bytes, in "
                    f"{info.file_size} of a file of {size}; write the file anew."
                )
