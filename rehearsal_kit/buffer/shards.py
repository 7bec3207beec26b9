"""The file of one rank's part of a buffer: names, checks, and rows that are read when a store takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SnapshotError
from rehearsal_kit.base.tensor_files import TensorFile, per_block
from rehearsal_kit.buffer.fields import Field, Rows
from rehearsal_kit.buffer.policies import OPEN, PolicyState
from rehearsal_kit.buffer.row_layout import RowLayout, Words

FORMAT = 1
ROWS = "rows"
STORE, PENDING, DRAWN = "store", "pending", "drawn"
SUFFIX, OLD_SUFFIX = ".safetensors", ".h5"
STATE = "state/"
"""The beginning of the name, in `about`, of what a policy remembers."""
BARE_STATE: PolicyState = {"oldest": 0, "threshold": OPEN}
"""And these stand there without it, in every shard: versions up to November 2026 know no others."""


class Shard(Protocol):
    """What one rank wrote; tensors are named "part/name"."""

    @property
    def about(self) -> Mapping[str, str]:
        """Everything that is not a tensor."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Some entries of a tensor along its first axis, or all of them."""


class OldShard:
    """A shard as versions up to November 2026 wrote them, in HDF5."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path, "r") as file:
            self.about = {name: str(value) for name, value in file.attrs.items()}
            if DRAWN in file:
                self.about["stored"] = str(file[DRAWN].attrs["stored"])
            self._shapes: dict[str, tuple[int, ...]] = {}
            for part in file:
                for name in file[part]:
                    self._shapes[f"{part}/{name}"] = _own_shape(file, f"{part}/{name}")
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str, begin: int = 0, end: int | None = None) -> NDArray[Any]:
        """Some entries of a tensor along its first axis, or all of them."""
        with h5py.File(self._path, "r") as file:
            _own_shape(file, name)
            numbers: NDArray[Any] = file[name][begin:end]
        return numbers


def open_shard(path: Path) -> Shard:
    """Look at a shard of either kind. SnapshotError if it is damaged, or of another format."""
    try:
        shard: Shard = OldShard(path) if path.suffix == OLD_SUFFIX else TensorFile(path)
        _require_sound(shard)
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SnapshotError) as error:
        raise SnapshotError(
            f"{path} cannot be read as a shard of a buffer: {error}. It may be truncated or of another kind; "
            "take an older snapshot, or go on without it by removing it and partial=True."
        ) from error
    return shard


@dataclass(frozen=True)
class ShardRows:
    """Rows that lie in shards until a store takes them: they are never in memory twice."""

    shape: tuple[int, int]
    sources: tuple[tuple[Shard, Rows, Rows], ...]
    """Shards; which of the rows of each are wanted, in ascending order; and where they belong."""
    nbytes = 0

    def __getitem__(self, block: slice) -> Words:
        """Some of the rows."""
        begin, end, _ = block.indices(self.shape[0])
        out = np.empty((max(0, end - begin), self.shape[1]), np.int64)
        self._copy(out, begin)
        return out

    def copy_into(self, out: Words) -> None:
        """All of them. SnapshotError if a shard cannot be read any more."""
        self._copy(out, 0)

    def _copy(self, out: Words, begin: int) -> None:
        each = per_block(self.shape[1] * out.itemsize)
        for shard, wanted, places in self.sources:
            # Scattered rows are read slowly: whole blocks are read, and what is wanted of them kept.
            edges = np.arange(0, shard.shape(f"{STORE}/{ROWS}")[0] + each, each)
            cuts = np.searchsorted(wanted, edges).tolist()
            for number, (first, last) in enumerate(pairwise(cuts)):
                here = (places[first:last] >= begin) & (places[first:last] < begin + len(out))
                if not here.any():
                    continue
                at = int(edges[number])
                rows = _read(shard, at, at + each)
                out[places[first:last][here] - begin] = rows[wanted[first:last][here] - at]


def _read(shard: Shard, begin: int, end: int) -> Words:
    try:
        rows: Words = shard.read(f"{STORE}/{ROWS}", begin, end)
    except (OSError, KeyError, ValueError) as error:
        raise SnapshotError(f"rows {begin} to {end} of a shard cannot be read any more: {error}.") from error
    return rows


def layout_as_text(layout: RowLayout) -> str:
    """A layout as JSON, for `about`."""
    fields = [asdict(field) | {"dtype": str(field.dtype).removeprefix("torch.")} for field in layout.fields]
    return json.dumps(fields)


def layout_of(shard: Shard) -> RowLayout:
    """Layout of the rows of a shard. SnapshotError if it has a dtype that torch has not."""
    fields = json.loads(shard.about["layout"])
    for field in fields:
        dtype = getattr(torch, field["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise SnapshotError(f"field {field['name']!r} has dtype {field['dtype']!r}, which torch has not")
        field |= {"dtype": dtype, "shape": tuple(field["shape"])}
    return RowLayout(tuple(Field(**field) for field in fields))


def state_as_text(state: PolicyState) -> dict[str, str]:
    """What a policy remembers, for `about`."""
    numbers = {**BARE_STATE, **state}
    return {name if name in BARE_STATE else STATE + name: json.dumps(numbers[name]) for name in numbers}


def state_of(shard: Shard) -> PolicyState:
    """All that policies remember by this shard. SnapshotError if any of it is no number of 64 bits."""
    named = {name.removeprefix(STATE): name for name in shard.about if name.startswith(STATE)}
    state = {}
    for name, key in {**{name: name for name in BARE_STATE}, **named}.items():
        state[name] = json.loads(shard.about[key])
        if not _is_plain(state[name]):
            raise SnapshotError(
                f"its policy remembers {name} {state[name]!r}; that must be a whole number of 64 bits or a "
                "finite one"
            )
    return state


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and -OPEN <= value <= OPEN


TENSORS = {STORE: (ROWS, "groups", "places"), PENDING: (ROWS, "groups"), DRAWN: (ROWS, "owners", "second")}
"""Names of the tensors of each part; the last two parts may be missing."""
NEWEST = f"{PENDING}/newest"
LOSSES, SEATS = f"{STORE}/losses", f"{STORE}/seats"
REPLAYED, LEARNED = f"{PENDING}/replayed", f"{PENDING}/learned"
EXTRAS = (NEWEST, LOSSES, SEATS, REPLAYED, LEARNED)
"""What earlier versions did not write, or only loss-aware removal does; losses are the bits of float64."""


def _require_sound(shard: Shard) -> None:
    if shard.about["format"] != str(FORMAT):
        raise SnapshotError(f"it has format {shard.about['format']}; this version reads format {FORMAT}")
    for name in ("seed", "capacity", "step"):
        int(shard.about[name])
    state_of(shard)
    words = layout_of(shard).words
    for part, names in TENSORS.items():
        if part != STORE and f"{part}/{ROWS}" not in shard:
            continue
        shapes = {name: shard.shape(f"{part}/{name}") for name in names}
        count = shapes[ROWS][0]
        if any(shape != ((count, words) if name == ROWS else (count,)) for name, shape in shapes.items()):
            raise SnapshotError(f"{part} has shapes {shapes}, but a row has {words} words")
        for name in names:
            dtype = shard.read(f"{part}/{name}", 0, 0).dtype  # numbers of another would be taken for these
            if dtype != (np.bool_ if name == "second" else np.int64):
                raise SnapshotError(f"{part}/{name} has dtype {dtype}")
    _require_sound_extras(shard)
    groups, places = shard.read(f"{STORE}/groups"), shard.read(f"{STORE}/places")
    order = np.lexsort((places, groups))
    first = np.searchsorted(groups[order], groups[order])
    if not np.array_equal(places[order], np.arange(len(groups)) - first):
        raise SnapshotError("the places of rows within their groups are not consistent")


def _require_sound_extras(shard: Shard) -> None:
    for name in filter(shard.__contains__, EXTRAS):
        shape, dtype = shard.shape(name), shard.read(name, 0, 0).dtype
        if len(shape) != 1 or dtype != np.int64:
            raise SnapshotError(f"{name} is {shape} of {dtype}")
    of_rows = f"{STORE}/groups"
    for name, beside in ((LOSSES, of_rows), (SEATS, of_rows), (LEARNED, REPLAYED), (REPLAYED, LEARNED)):
        if name in shard and (beside not in shard or shard.shape(name) != shard.shape(beside)):
            raise SnapshotError(f"{name} has {shard.shape(name)[0]} numbers, and {beside} others or none")
    if LOSSES in shard and np.isinf(shard.read(LOSSES).view(np.float64)).any():
        raise SnapshotError(f"{LOSSES} has a loss that is infinite")


def _own_shape(file: h5py.File, name: str) -> tuple[int, ...]:
    # Only what lies in this file itself: a link or external storage could name any other file.
    link, dataset = file.get(name, getlink=True), file[name]
    if not isinstance(link, h5py.HardLink) or dataset.external or dataset.is_virtual:
        raise ValueError(f"{name} lies in another file")
    shape: tuple[int, ...] = dataset.shape
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise ValueError(f"{name} {shape} takes {dataset.id.get_storage_size()} bytes in the file")
    return shape
