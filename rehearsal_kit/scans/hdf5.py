"""Careful reading of HDF5 files that came from somebody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.errors import ScanError


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; closed again when the block ends.

    Raises:
        ScanError: missing, not readable, empty, not HDF5, truncated, or locked by a writer.
    """
    try:
        with path.open("rb") as plain:
            empty = not plain.read(1)
    except FileNotFoundError as error:
        raise ScanError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise ScanError(f"{path}: cannot be opened: {error.strerror}.") from error
    if empty:
        raise ScanError(f"{path}: the file is empty (0 bytes); its writer or copy has not finished.")
    with suppress(ImportError):  # where it is installed: registers the filters that detectors compress with
        import hdf5plugin  # noqa: F401, PLC0415
    if not h5py.is_hdf5(path):
        raise ScanError(f"{path}: is not an HDF5 file, whatever its name says.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        hint = (
            "its writer or copy has not finished, or was interrupted"
            if "truncated" in str(error)
            else "it may still be open in the program that writes it"
        )
        raise ScanError(f"{path}: HDF5 cannot open it ({error}); {hint}.") from error
    with file:
        yield file


def find(file: h5py.File, at: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at `at`, soft links followed inside the file; None if nothing does.

    A file must not point outside itself: it comes from elsewhere and would read what its sender names.

    Raises:
        ScanError: an external link on the way, soft links that go round in circles, a virtual dataset or
            one with its data in another file.
    """
    names, here, followed = at.strip("/").split("/"), "", 0
    while names:
        name = names.pop(0)
        link = file.get(f"{here}/{name}", getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise ScanError(
                f"{file.filename}: {here}/{name} is a link into another file ({link.filename}); a scan must "
                "lie in one file. Copy the data into it (h5repack, or h5copy -f ext)."
            )
        if isinstance(link, h5py.SoftLink):
            followed += 1
            if followed > 32:
                raise ScanError(f"{file.filename}: {at} is a circle of soft links.")
            start = "" if link.path.startswith("/") else here
            names = [part for part in f"{start}/{link.path}".split("/") if part not in ("", ".")] + names
            here = ""
        else:
            here = f"{here}/{name}"
            if names and not isinstance(file[here], h5py.Group):
                return None
    item = file[here]
    _require_own_data(file, here, item)
    return item


def dataset_of(file: h5py.File, at: str) -> h5py.Dataset:
    """The dataset at `at`; ScanError if there is none, or it lies outside the file."""
    item = find(file, at)
    if not isinstance(item, h5py.Dataset):
        raise ScanError(f"{file.filename}: there is no dataset {at}.")
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


def _require_own_data(file: h5py.File, at: str, item: h5py.Group | h5py.Dataset) -> None:
    if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
        raise ScanError(
            f"{file.filename}: {at} takes its data from other files (a virtual or external dataset); a scan "
            "must lie in one file. Copy the data into it (h5repack)."
        )
