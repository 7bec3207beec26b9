"""Where the fields of a scan lie in a file: a layout as a table, for files of which no code knows.

Each place is the path of a dataset. After it, `@name` means an attribute, and `[0]` or `[:, 1]` one row or
column of it; `*` and `?` stand for any part of a name. Beamlines change paths more often than software is
released.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer, require_number, require_one_of, require_switch
from rehearsal_kit.base.plain_values import make_plain
from rehearsal_kit.data.scans.doors.files import open_regular
from rehearsal_kit.data.scans.frames.orientation import require_code
from rehearsal_kit.data.scans.frames.raw_frames import AXES
from rehearsal_kit.data.scans.quantities import ENERGIES, LENGTHS

STORED = ("counts", "amplitude")
NEGATIVE = ("refuse", "zero", "wrapped")
LARGEST_BYTES = 2**20
"""The largest file with a mapping that is read."""

Places = str | Sequence[str]
"""One place, or several, of which the first at which something lies counts; kept as a tuple."""


@dataclass(frozen=True, kw_only=True)
class FramesAt:
    """Where the frames lie, and how."""

    at: Places
    """Datasets; one that matches several is all of them, one after the other."""
    axes: str | None = None
    """"frame row column", "row column frame", "slow fast row column" or "row column"; None: the first or
    the third."""
    stored: str = "counts"
    """"counts", or "amplitude" for their square roots."""
    corner: bool = False
    """Whether DC lies at the corner."""
    negative: str = "refuse"
    """Counts below zero: "refuse" them, take them as "zero", or as "wrapped" sixteen bit numbers."""
    gap: int | None = None
    """The number that a pixel without a counter holds in all frames, where it could be a count as well."""

    def __post_init__(self) -> None:
        _take_places(self, "at")
        if self.gap is not None:
            require_integer("gap", self.gap, low=-(2**31), high=2**63 - 1)
        if self.axes is not None:
            require_one_of("axes", self.axes, AXES)
        require_one_of("stored", self.stored, STORED)
        require_one_of("negative", self.negative, NEGATIVE)
        require_switch("corner", self.corner)


@dataclass(frozen=True, kw_only=True)
class PositionsAt:
    """Where the positions lie, in the same order as the frames."""

    row: Places
    """Positions along the rows of the object, vertical; in a text file, the number of a column from 0."""
    column: Places
    """Positions along its columns, horizontal."""
    unit: str = "m"
    """A unit of length, or "pixel" of the object; counts where the file states none."""
    row_sign: int = 1
    """-1 where they grow as the row numbers fall."""
    column_sign: int = 1
    file: str | None = None
    """Another file that holds them, HDF5, .npz or text: a name in the folder of the scan, {stem} in it stands
    for its name without suffix, {number} for the longest run of digits in that; see `companion_name`."""

    def __post_init__(self) -> None:
        _take_places(self, "row", "column")
        require_one_of("unit", self.unit, ("pixel", *LENGTHS))
        for label in ("row_sign", "column_sign"):
            if getattr(self, label) not in (1, -1):
                raise SettingsError(f"{label} is {getattr(self, label)!r}; it must be 1 or -1.")


@dataclass(frozen=True, kw_only=True)
class NumberAt:
    """One number with a unit: in the file, or given here."""

    at: Places = ()
    unit: str
    """Its unit; where the file states another one, that one counts."""
    value: float | None = None
    """The number itself, where no file has it."""

    def __post_init__(self) -> None:
        _take_places(self, "at")
        if bool(self.at) == (self.value is not None):
            raise SettingsError(f"a number is at {self.at!r} with value {self.value!r}; give one of them.")
        if self.value is not None:
            require_number("value", self.value, low=-1e30, high=1e30)
        require_one_of("unit", self.unit, (*LENGTHS, *ENERGIES, "pixel"))


@dataclass(frozen=True, kw_only=True)
class MaskAt:
    """Where the mask of the detector lies, and what it means."""

    at: Places
    good: int = 0
    """What a good pixel is: 0, or 1 where the mask says which pixels count."""
    bits: int | None = None
    """Only these bits make a pixel bad; None: all."""

    def __post_init__(self) -> None:
        _take_places(self, "at")
        require_one_of("good", str(self.good), ("0", "1"))
        if self.bits is not None:
            require_integer("bits", self.bits, low=1, high=2**64 - 1)


@dataclass(frozen=True, kw_only=True)
class ObjectAt:
    """Where a reconstruction lies, (row, column) or (layer, row, column), and where the scan lies in it."""

    at: Places
    pixel: NumberAt | None = None
    """Side of one of its pixels; None: that of the far field."""
    centre_row: NumberAt | None = None
    """Position at which the centre of its array lies; None, as for the column: positions count from its
    corner."""
    centre_column: NumberAt | None = None
    file: str | None = None
    """Another file that holds it, named as that of the positions is."""

    def __post_init__(self) -> None:
        _take_places(self, "at")
        for label in ("pixel", "centre_row", "centre_column"):
            _take(self, label, NumberAt)
        if (self.centre_row is None) != (self.centre_column is None):
            raise SettingsError("centre_row and centre_column belong together; give both or none.")


@dataclass(frozen=True, kw_only=True)
class ScanMapping:
    """All of a layout; every part but frames and positions may be missing."""

    frames: FramesAt
    positions: PositionsAt
    energy: NumberAt | None = None
    distance: NumberAt | None = None
    detector_pixel: NumberAt | None = None
    mask: MaskAt | None = None
    dark: Places = ()
    """Counts without beam, (row, column), or several such frames."""
    flat: Places = ()
    """What each pixel makes of one photon, (row, column)."""
    monitor: Places = ()
    """Photons that came in, (frame,)."""
    centre_row: NumberAt | None = None
    """Where the beam hits the detector, in pixels as stored."""
    centre_column: NumberAt | None = None
    object: ObjectAt | None = None
    orientation: int = 0
    """How frames have to be turned; see `orientation.require_code`."""

    def __post_init__(self) -> None:
        make_plain(self)
        _take(self, "frames", FramesAt)
        _take(self, "positions", PositionsAt)
        for label in ("energy", "distance", "detector_pixel", "centre_row", "centre_column"):
            _take(self, label, NumberAt)
        _take(self, "mask", MaskAt)
        _take(self, "object", ObjectAt)
        _take_places(self, "dark", "flat", "monitor")
        require_code("orientation", self.orientation)


def read_mapping(path: str | Path) -> ScanMapping:
    """The mapping in a TOML file, with a table for each part.

    Raises:
        NotYetError: there is no such file.
        ScanError: it cannot be read.
        SettingsError: it is no TOML, or holds what no mapping has; names the part.
    """
    with open_regular(path) as stream:
        text = stream.read(LARGEST_BYTES + 1)
    if len(text) > LARGEST_BYTES:
        raise SettingsError(f"{path}: is larger than {LARGEST_BYTES} bytes, which no mapping is.")
    try:
        plain = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no TOML: {error}.") from error
    try:
        mapping: ScanMapping = _made(ScanMapping, plain, "the mapping")
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return mapping


def parted(place: str) -> tuple[str, tuple[int | slice, ...]]:
    """The path in a place, and which part of what lies there: none, one row `[0]`, or one column `[:, 1]`.

    Raises:
        SettingsError: brackets with something else between them.
    """
    found = re.fullmatch(r"(.+?)(?:\[\s*(:\s*,\s*)?(\d+)\s*\])?", place)
    # What is left of brackets at the end is a pattern, such as data_[0-9]; only numbers alone are a part.
    if found is None:
        raise SettingsError(f"{place!r} is no place; it must be a path, such as /entry/data/data.")
    path, after_colon, number = found.groups()
    if number is None:
        return path, ()
    return path, (slice(None), int(number)) if after_colon else (int(number),)


def _take_places(record: Any, *labels: str) -> None:
    for label in labels:
        value = getattr(record, label)
        places = (value,) if isinstance(value, str) else value
        if not isinstance(places, list | tuple) or not all(isinstance(each, str) and each for each in places):
            raise SettingsError(
                f"{label} is {value!r}; it must be the path of a dataset, or a list of paths."
            )
        object.__setattr__(record, label, tuple(places))


def _take(record: Any, label: str, kind: type[Any]) -> None:
    """Make a part of plain values, as TOML and JSON have them, the dataclass that it is."""
    value = getattr(record, label)
    if isinstance(value, Mapping):
        object.__setattr__(record, label, _made(kind, value, label))
    elif value is not None and not isinstance(value, kind):
        raise SettingsError(f"{label} is {value!r}; it must be a {kind.__name__}, or a table of its fields.")


def _made(kind: type[Any], plain: Mapping[str, Any], where: str) -> Any:
    known = [each.name for each in fields(kind)]
    unknown = [name for name in plain if name not in known]
    if unknown:
        raise SettingsError(f"{where} has {', '.join(unknown)}; known are {', '.join(known)}.")
    try:
        return kind(**plain)
    except TypeError as error:
        raise SettingsError(f"{where} lacks a part: {error}; known are {', '.join(known)}.") from error
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
