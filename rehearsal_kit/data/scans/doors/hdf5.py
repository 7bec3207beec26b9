"""The door for every HDF5 file that comes from elsewhere: nothing leads out of it, or claims what it has not.

A link to another file would read, for its sender, whatever the person who trains may read; so it is followed
only by who says where it may lead (`Follow`, see scan_file.py), and refused everywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.data.scans.doors.files import open_regular

UNFINISHED = ("truncated", "unable to lock", "already open for write", "bad byte number", "addr overflow")
"""What HDF5 says of a file that its writer, or a copy, has not finished."""
FREE_BYTES = 2**28
"""What a dataset may claim whatever the size of its file."""
LARGEST_RATIO = 2000
"""Bytes that a dataset may claim for each byte of its file; deflate reaches 1032 where all is zero."""
ATTRIBUTE_BYTES = 2**16

Follow = Callable[[h5py.File, str], h5py.File]
"""Opens the file that one of the given file names, as that name stands there; ScanError if that is not
allowed."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; closed again when the block ends.

    Raises:
        NotYetError: missing, empty, truncated, or locked by its writer.
        ScanError: not a file, not readable, or not HDF5.
    """
    with open_regular(path) as plain:
        if not os.fstat(plain.fileno()).st_size:
            raise NotYetError(f"{path}: the file is empty (0 bytes); its writer or copy has not finished.")
        file = _opened(path, plain)
    with file:
        yield file


def opened_once(path: Path, file: h5py.File | None) -> AbstractContextManager[h5py.File]:
    """The file that is open already, which stays so when the block ends; `opened(path)` where it is None."""
    return opened(path) if file is None else nullcontext(file)


def find(file: h5py.File, at: str, *, follow: Follow | None = None) -> h5py.Group | h5py.Dataset | None:
    """What lies at `at`, soft links followed inside the file; None if nothing does.

    follow: opens files that links lead to; None: such links are refused.

    Raises:
        ScanError: an external link on the way, links that go round in circles, a virtual dataset or one with
            its data in another file.
    """
    asked, names, here, followed = at, at.strip("/").split("/"), "", 0
    while names:
        name = names.pop(0)
        link = _link(file, f"{here}/{name}")
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            followed += 1
            if followed > 32:
                raise ScanError(f"{file.filename}: {asked} is a circle of links; remove it.")
            start = "" if link.path.startswith("/") else here
            if isinstance(link, h5py.ExternalLink):
                file, start = _followed(file, f"{here}/{name}", link=link, follow=follow), ""
            names = [part for part in f"{start}/{link.path}".split("/") if part not in ("", ".")] + names
            here = ""
        else:
            here = f"{here}/{name}"
            if names and not isinstance(file[here], h5py.Group):
                return None
    item = file[here or "/"]
    if isinstance(item, h5py.Dataset):
        _require_known_sources(file, here, item=item, follow=follow)
    return item


def dataset_of(file: h5py.File, at: str, *, follow: Follow | None = None) -> h5py.Dataset:
    """The dataset at `at`; ScanError if there is none, it lies where none may, or claims too much.

    follow: as `find` has it.
    """
    item = find(file, at, follow=follow)
    if not isinstance(item, h5py.Dataset):
        raise ScanError(f"{file.filename}: there is no dataset {at}.")
    try:
        bytes_, shape = item.dtype.itemsize, item.shape
    except TypeError as error:  # a type that numpy has not
        raise ScanError(f"{file.filename}: {at} cannot be read: {error}; write it as numbers.") from error
    if shape is None:
        raise ScanError(f"{file.filename}: {at} is a dataset without values; write it anew.")
    _require_filters(item)
    claimed = item.size * bytes_
    if claimed > FREE_BYTES:
        held = _bytes_held(item, follow)
        if claimed > LARGEST_RATIO * held:
            raise ScanError(
                f"{file.filename}: {at} says that it holds {shape} of {item.dtype}, {claimed} bytes, in "
                f"{held} bytes of files; no more than {LARGEST_RATIO} times as many are believed. Write the "
                "file anew with the shape that its data have."
            )
    return item


def values_of(
    file: h5py.File, at: str, *, shapes: Sequence[tuple[int, ...]], kinds: str = "iuf"
) -> NDArray[Any]:
    """The values of the dataset at `at`, whose shape and kind of dtype must be among those given.

    Raises:
        ScanError: no such dataset, another shape or kind, or it cannot be read.
    """
    dataset = dataset_of(file, at)
    if dataset.shape not in shapes or dataset.dtype.kind not in kinds:
        raise ScanError(
            f"{file.filename}: {at} is {dataset.dtype} of shape {dataset.shape}; it must hold numbers "
            f"(dtype kind one of {kinds!r}) of shape {' or '.join(map(str, shapes))}."
        )
    try:
        return np.asarray(dataset[()])
    except OSError as error:
        raise ScanError(f"{file.filename}: {at} cannot be read: {error}; the file is damaged.") from error


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """The value of an attribute, bytes as text; None if there is none.

    Raises:
        ScanError: one that is too large to be what is looked for, or of a type that cannot be read.
    """
    try:
        if name not in item.attrs:
            return None
        size = item.attrs.get_id(name).get_storage_size()
        value = item.attrs[name] if size <= ATTRIBUTE_BYTES else None
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise ScanError(
            f"{item.file.filename}: attribute {name} of {item.name} cannot be read: {error}; write it anew."
        ) from error
    if value is None or isinstance(value, h5py.Empty):
        raise ScanError(
            f"{item.file.filename}: attribute {name} of {item.name} has {size} bytes; there must be 1 to "
            f"{ATTRIBUTE_BYTES}."
        )
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _opened(path: Path, plain: BinaryIO) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        words = str(error)
        if "signature not found" in words:
            raise ScanError(f"{path}: is not an HDF5 file, whatever its name says.") from error
        if any(unfinished in words for unfinished in UNFINISHED):
            held = "unable to lock" in words or "open for write" in words
            hint = (
                "it is still open in the program that writes it (or was when that died: h5clear -s frees it)"
                if held
                else "its writer or copy has not finished, or was interrupted"
            )
            raise NotYetError(f"{path}: HDF5 cannot open it ({error}); {hint}.", held=held) from error
        raise ScanError(f"{path}: HDF5 cannot open it ({error}); copy or write it anew.") from error
    ours, theirs = os.fstat(plain.fileno()), os.fstat(file.id.get_vfd_handle())
    if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
        file.close()
        raise NotYetError(f"{path}: another file took its place while it was opened.")
    return file


def _link(file: h5py.File, at: str) -> h5py.HardLink | h5py.SoftLink | h5py.ExternalLink | None:
    try:
        return file.get(at, getlink=True)
    except (TypeError, RuntimeError, ValueError) as error:  # a kind of link that h5py does not know
        raise ScanError(
            f"{file.filename}: {at} is a link that cannot be followed: {error}; copy the data there."
        ) from error


def _followed(file: h5py.File, at: str, *, link: h5py.ExternalLink, follow: Follow | None) -> h5py.File:
    if follow is None:
        raise ScanError(
            f"{file.filename}: {at} is a link into another file ({link.filename}); its data must lie in one "
            "file. Copy the data into it (h5repack, or h5copy -f ext)."
        )
    return follow(file, link.filename)


def _require_known_sources(file: h5py.File, at: str, *, item: h5py.Dataset, follow: Follow | None) -> None:
    """ScanError if a dataset takes its data from files that may not be read; HDF5 opens them by itself."""
    if item.external or (item.is_virtual and follow is None):
        raise ScanError(
            f"{file.filename}: {at} takes its data from other files (a virtual or external dataset); its "
            "data must lie in one file. Copy the data into it (h5repack)."
        )
    if item.is_virtual and follow is not None:
        for source in item.virtual_sources():
            # One that is missing would be read as zeros, without a word.
            there = file if source.file_name == "." else follow(file, source.file_name)
            if not isinstance(there.get(source.dset_name), h5py.Dataset):
                raise ScanError(
                    f"{file.filename}: {at} takes its data from {source.dset_name} of {there.filename}, "
                    "which has no such dataset; copy that file anew."
                )
            _require_filters(there[source.dset_name])


def _bytes_held(item: h5py.Dataset, follow: Follow | None) -> int:
    """Bytes of the files that a dataset may have its data in."""
    sizes = {item.file.filename: _size(item.file)}
    if item.is_virtual and follow is not None:
        for source in item.virtual_sources():
            if source.file_name != ".":
                there = follow(item.file, source.file_name)
                sizes[there.filename] = _size(there)  # asked at once: of very many files few stay open
    return sum(sizes.values())


def _size(file: h5py.File) -> int:
    return os.fstat(file.id.get_vfd_handle()).st_size


def _require_filters(item: h5py.Dataset) -> None:
    """Make known what a dataset is compressed with; ScanError if nobody here knows it."""
    settings = item.id.get_create_plist()
    filters = [settings.get_filter(number) for number in range(settings.get_nfilters())]
    if all(h5py.h5z.filter_avail(each[0]) for each in filters):
        return
    import hdf5plugin  # noqa: F401, PLC0415 - takes half a second, for what few files are compressed with

    unknown = [f"{each[0]} ({each[3].decode()})" for each in filters if not h5py.h5z.filter_avail(each[0])]
    if unknown:
        raise ScanError(
            f"{item.file.filename}: {item.name} is compressed with the filter {', '.join(unknown)}, which "
            "the package hdf5plugin does not have; write it anew with another one (h5repack -f GZIP=1)."
        )
