"""The door to a scan: its file, open, with what that file links to in folders where links may lead.

Beamlines spread a scan over files: a master with a link for every thousand frames, positions in a file of the
motors. A link is followed only below the roots: the folder of the file itself, and those that a person named.
"""

from __future__ import annotations

import fnmatch
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import NotYetError, ScanError
from rehearsal_kit.base.natural_order import in_natural_order
from rehearsal_kit.data.scans.doors import hdf5
from rehearsal_kit.data.scans.doors.files import open_regular
from rehearsal_kit.data.scans.doors.npz_members import NpzMember, members_of
from rehearsal_kit.data.scans.quantities import factor_of, require_positive

MOST_FILES = 10_000
"""Files that one scan may be spread over."""
MOST_OPEN = 64
"""How many of these are open at once; those that were needed longest ago are closed. Systems allow few
more."""
MOST_NAMES = 100_000
"""Members of a group among which a pattern is looked for."""
LARGEST_VALUES = 2**28
"""Bytes of a dataset that is read as a whole and is no object: compressed, it may claim what no memory
has."""
_ZIP = b"PK\x03\x04"


class Dataset(Protocol):
    """An array in a file, of which parts can be read: that of h5py, or of an archive of numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its values."""

    @property
    def ndim(self) -> int:
        """Number of its axes."""

    @property
    def size(self) -> int:
        """Number of its values."""

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""

    def __len__(self) -> int:
        """Size of its first axis."""

    def __getitem__(self, key: Any) -> Any:
        """Some of its values, by what numpy takes as index."""


class ScanFile(ABC):
    """A file with named arrays, and the others that its scan is spread over; see `opened_scan`."""

    def __init__(self, path: Path, roots: Sequence[Path] = ()) -> None:
        self.path = path
        self.roots = (path.parent, *roots)
        self._real = Path(os.path.realpath(path))
        self._kept = ExitStack()
        self._others: dict[Path, ScanFile] = {}
        self._known: dict[Path, None] = {}

    @property
    def others(self) -> list[Path]:
        """The other files that something was taken from so far, in the order in which it was."""
        return list(self._known)

    def know(self, path: Path) -> None:
        """Another file belongs to the scan, one that is no file of arrays."""
        self._known[path] = None

    @abstractmethod
    def find(self, at: str) -> Dataset | h5py.Group | None:
        """What lies at `at`, links followed as far as they may lead; None if nothing does."""

    @abstractmethod
    def names(self, at: str) -> list[str]:
        """Names of what lies in the group at `at`, in natural order; none where there is no such group."""

    @abstractmethod
    def attribute(self, at: str, name: str) -> Any:
        """The value of an attribute of what lies at `at`, bytes as text; None if there is none."""

    @abstractmethod
    def dataset(self, at: str) -> Dataset:
        """The dataset at `at`; ScanError if there is none, it may not be read, or it claims too much."""

    def close(self) -> None:
        """Close it and all others that were opened."""
        for other in self._others.values():
            other.close()
        self._others.clear()
        self._kept.close()

    def other(self, name: str | Path) -> ScanFile:
        """Another file of this scan, by its name as it stands in this one.

        It is open until this one is closed, or until more than `MOST_OPEN` others were needed since.

        Raises:
            NotYetError: there is no such file, or its writer has not finished.
            ScanError: it lies where no link may lead, or cannot be opened.
        """
        path = self.place_of(name)
        if path == self._real:
            return self
        opened = self._others.pop(path, None)
        if opened is None:
            if len(self._known) >= MOST_FILES and path not in self._known:
                raise ScanError(
                    f"{self.path}: is spread over more than {MOST_FILES} files; write its data to fewer."
                )
            opened = _opened(path, self.roots[1:])
            self.know(path)
        self._others[path] = opened  # the last of them is the one that was needed last
        if len(self._others) > MOST_OPEN:
            self._others.pop(next(iter(self._others))).close()
        return opened

    def behind(self, at: str) -> ScanFile:
        """The file in which what lies at `at` really lies, behind all links; ScanError if nothing does."""
        item = self.find(at)
        if item is None:
            raise ScanError(f"{self.path}: there is no {at}.")
        if not isinstance(item, h5py.Group | h5py.Dataset):
            return self
        return self.other(Path(item.file.filename).absolute())

    def dangles(self, at: str) -> bool:
        """Whether a link there leads to a file that does not exist."""
        try:
            self.find(at)
        except NotYetError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return True
            raise
        return False

    def place_of(self, name: str | Path) -> Path:
        """Where a file that is named in this one lies, all symbolic links resolved.

        Raises:
            ScanError: it lies below none of the folders that links may lead to.
        """
        path = Path(os.path.realpath(self._real.parent / name))
        if path == self._real:
            return path
        roots = [Path(os.path.realpath(root)) for root in self.roots]
        if not any(path.is_relative_to(root) for root in roots):
            raise ScanError(
                f"{self.path}: leads to {path}, which lies in none of the folders that links may lead to: "
                f"{', '.join(map(str, roots))}. If it is to be read, name its folder: "
                f"ScanReading(roots=[{str(path.parent)!r}])."
            )
        return path

    # Of what was found -----------------------------------------------------------------------------------

    def first(self, *places: str) -> str | None:
        """The first of these places at which something lies."""
        return next((at for at in places if self.find(at) is not None), None)

    def matching(self, pattern: str) -> list[str]:
        """Places that match a pattern, in natural order: each of its names may hold *, ? and [...]."""
        found = [""]
        for part in pattern.strip("/").split("/"):
            if not set(part) & set("*?["):
                found = [f"{at}/{part}" for at in found]
                continue
            found = [
                f"{at}/{name}"
                for at in found
                for name in self.names(at or "/")
                if fnmatch.fnmatchcase(name, part)
            ]
        return [at for at in found if self.find(at) is not None]

    def values(self, at: str, *, shapes: Sequence[tuple[int, ...]] = (), kinds: str = "iuf") -> NDArray[Any]:
        """The values of the dataset at `at`; ScanError unless shape and kind of dtype are among those given.

        shapes: none means any, of as many bytes as positions or masks may have.
        """
        dataset = self.dataset(at)
        if not shapes and dataset.nbytes > LARGEST_VALUES:
            raise ScanError(
                f"{self.path}: {at} holds {dataset.shape} of {dataset.dtype}, {dataset.nbytes} bytes; what "
                f"is read at once has no more than {LARGEST_VALUES}. Write what belongs there."
            )
        if (shapes and dataset.shape not in shapes) or dataset.dtype.kind not in kinds:
            wanted = f" of shape {' or '.join(map(str, shapes))}" if shapes else ""
            raise ScanError(
                f"{self.path}: {at} is {dataset.dtype} of shape {dataset.shape}; it must hold numbers (dtype "
                f"kind one of {kinds!r}){wanted}."
            )
        try:
            return np.asarray(dataset[()])
        except OSError as error:
            raise ScanError(f"{self.path}: {at} cannot be read: {error}; the file is damaged.") from error

    def text(self, at: str) -> str | None:
        """The text in the dataset at `at`; None if there is none, or it holds something else."""
        item = self.find(at)
        if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "OSU":
            return None
        value = np.asarray(item[()]).reshape(-1)[0]
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def number(self, at: str) -> float | None:
        """The one number in the dataset or, after @, the attribute at `at`; None if there is nothing.

        Several numbers that are all the same are one, as where a value was written down with every frame.
        """
        place, _, name = at.partition("@")
        if name:
            found = self.attribute(place or "/", name)
            if found is None:
                return None
            values = np.asarray(found).reshape(-1)
        elif self.find(at) is None:
            return None
        else:
            values = self.values(at).reshape(-1)
        if not values.size or values.dtype.kind not in "iuf" or np.any(values != values[0]):
            raise ScanError(f"{self.path}: {at} holds {values[:3]}; it must be one number.")
        return float(values[0])

    def unit(self, at: str, default: str) -> str:
        """The unit that a dataset states in its attribute units; `default` where it states none."""
        place, _, name = at.partition("@")
        stated = None if name else self.attribute(place, "units")
        if isinstance(stated, np.ndarray) and stated.size == 1:
            stated = stated.reshape(-1)[0]
        if isinstance(stated, bytes):
            stated = stated.decode(errors="replace")
        return default if stated is None else str(stated)

    def quantity(self, at: str, units: Any, *, default: str) -> float | None:
        """The number at `at` times what its unit is in `units`; None if there is nothing.

        default: the unit where the file states none.

        Raises:
            ScanError: an unknown unit, or a number that is not above zero.
        """
        value = self.number(at)
        if value is None:
            return None
        where = f"{self.path}: {at}"
        return require_positive(value, where) * factor_of(self.unit(at, default), units, where)


class Hdf5ScanFile(ScanFile):
    """A scan whose file is HDF5."""

    def __init__(self, path: Path, roots: Sequence[Path] = ()) -> None:
        super().__init__(path, roots)
        self.hdf5 = self._kept.enter_context(hdf5.opened(path))

    def find(self, at: str) -> Dataset | h5py.Group | None:
        """What lies at `at`, links followed as far as they may lead; None if nothing does."""
        return hdf5.find(self.hdf5, at, follow=self._follow)

    def dataset(self, at: str) -> Dataset:
        """The dataset at `at`; ScanError if there is none, it may not be read, or it claims too much."""
        found: Dataset = hdf5.dataset_of(self.hdf5, at, follow=self._follow)
        return found

    def names(self, at: str) -> list[str]:
        """Names of what lies in the group at `at`, in natural order; none where there is no such group."""
        group = self.hdf5 if at == "/" else self.find(at)
        if not isinstance(group, h5py.Group):
            return []
        if len(group) > MOST_NAMES:
            raise ScanError(
                f"{self.path}: {at} has {len(group)} members; no more than {MOST_NAMES} are looked at."
            )
        return in_natural_order(group)

    def attribute(self, at: str, name: str) -> Any:
        """The value of an attribute of what lies at `at`, bytes as text; None if there is none."""
        item = self.hdf5 if at == "/" else self.find(at)
        return None if item is None or isinstance(item, NpzMember) else hdf5.attribute(item, name)

    def _follow(self, file: h5py.File, name: str) -> h5py.File:
        holder = self
        if file.filename != self.hdf5.filename:
            # It counts as needed now, else a virtual dataset could be closed while its files are looked at.
            known = self.other(Path(file.filename).absolute())
            assert isinstance(known, Hdf5ScanFile)  # noqa: S101 - a link is met in a file that was opened here
            holder = known
        other = self.other(holder._real.parent / name)
        if not isinstance(other, Hdf5ScanFile):
            raise ScanError(f"{file.filename}: links to {name}, which is no HDF5 file.")
        return other.hdf5


class NpzScanFile(ScanFile):
    """A scan whose file is an .npz archive of numpy: arrays without groups, attributes or units."""

    def __init__(self, path: Path, roots: Sequence[Path] = ()) -> None:
        super().__init__(path, roots)
        with ExitStack() as kept:
            stream = kept.enter_context(open_regular(path))
            try:
                archive = kept.enter_context(zipfile.ZipFile(stream))
                self._members = members_of(path, archive, size=os.fstat(stream.fileno()).st_size)
                for member in self._members.values():
                    kept.callback(member.close)
            except (ScanError, NotYetError):
                raise
            except zipfile.BadZipFile as error:
                raise NotYetError(
                    f"{path}: is no whole .npz archive ({error}); its writer or copy has not finished, or "
                    "was interrupted."
                ) from error
            except Exception as error:  # zlib and struct each have their own
                raise ScanError(f"{path}: cannot be read as .npz ({error}); write it anew.") from error
            self._kept = kept.pop_all()

    def find(self, at: str) -> Dataset | h5py.Group | None:
        """What lies at `at`, links followed as far as they may lead; None if nothing does."""
        return self._members.get(at.strip("/"))

    def dataset(self, at: str) -> Dataset:
        """The dataset at `at`; ScanError if there is none, it may not be read, or it claims too much."""
        found = self._members.get(at.strip("/"))
        if found is None:
            raise ScanError(
                f"{self.path}: there is no array {at.strip('/')}; it has "
                f"{', '.join(self._members) or 'none'}."
            )
        return found

    def names(self, at: str) -> list[str]:
        """Names of what lies in the group at `at`, in natural order; none where there is no such group."""
        return list(self._members) if at == "/" else []

    def attribute(self, at: str, name: str) -> Any:
        """The value of an attribute of what lies at `at`, bytes as text; None if there is none."""
        return None


@contextmanager
def opened_scan(path: Path, roots: Sequence[str | Path] = ()) -> Iterator[ScanFile]:
    """A scan's file, HDF5 or .npz, open for reading; closed with all it led to when the block ends.

    roots: folders that its links may lead to, beside its own.

    Raises:
        NotYetError: missing, empty, truncated, or locked by its writer.
        ScanError: not a file, not readable, or of another kind.
    """
    file = _opened(path, [Path(root) for root in roots])
    try:
        yield file
    finally:
        file.close()


def _opened(path: Path, roots: Sequence[Path]) -> ScanFile:
    with open_regular(path) as plain:
        begins = plain.read(len(_ZIP))
    return NpzScanFile(path, roots) if begins == _ZIP else Hdf5ScanFile(path, roots)
