"""The distributed buffer on disk: one HDF5 file per rank, restored onto any number of ranks."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.buffer import Contents
from rehearsal_kit.errors import SnapshotError
from rehearsal_kit.group_index import GroupIndex
from rehearsal_kit.layout import IDENTITY, WORD, Field, RowLayout, Rows
from rehearsal_kit.rounds import BufferState, Drawn, Pending
from rehearsal_kit.run_folder import written_whole

FORMAT = 1
CHUNK = 4096
ROWS = "rows"


def write_shard(folder: Path, state: BufferState, *, rank: int, ranks: int) -> Path:
    """Write what one rank holds; the file is whole or not there, and readable by its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(folder, rank, ranks)
    with written_whole(path) as partial, h5py.File(partial, "w") as file:
        file.attrs.update(
            format=FORMAT,
            layout=_layout_as_text(state.layout),
            policy=state.policy,
            seed=state.seed,
            capacity=state.capacity,
            oldest=state.oldest,
            threshold=state.threshold,
            step=state.step,
        )
        contents, pending, drawn = state.contents, state.pending, state.drawn
        store = {ROWS: contents.rows, "groups": contents.groups, "places": contents.places}
        _write(file, "store", store)
        if pending is not None:
            offered = {ROWS: pending.rows(), "groups": np.array(pending.groups, dtype=np.int64)}
            _write(file, "pending", offered)
        if drawn is not None:
            came = {ROWS: drawn.rows.numpy(), "owners": drawn.owners, "second": drawn.second}
            _write(file, "drawn", came).attrs["stored"] = drawn.stored
    return path


def read_shards(folder: Path, *, rank: int, ranks: int, partial: bool = False) -> BufferState:
    """What this rank goes on with; for `DistributedBuffer.restore`, on all ranks alike.

    On as many ranks as wrote the shards everything continues as it would have. On another number the same
    samples are dealt anew, evenly by group (or by age), and the first mini-batch is not augmented.

    partial: go on without shards that are missing, with a warning that counts them. SnapshotError if there
    is none, one is missing or broken, or they are not of one moment.
    """
    paths, missing = _shards(folder)
    if missing and not partial:
        raise SnapshotError(
            f"{folder} lacks {', '.join(path.name for path in missing)}; copy what is missing, or go on "
            "without the samples in it by partial=True."
        )
    if missing:
        share = f"{len(missing)} of {len(missing) + len(paths)} shards"
        warnings.warn(f"{folder}: {share} of the buffer are missing, and their samples lost.", stacklevel=2)
    if len(paths) == ranks and not missing:
        with _open(paths[rank]) as file:
            return _whole(file)
    with contextlib.ExitStack() as stack:
        return _dealt([stack.enter_context(_open(path)) for path in paths], slice(rank, None, ranks))


def _whole(file: h5py.File) -> BufferState:
    drawn = pending = None
    if "pending" in file:
        part = file["pending"]
        pending = _handed_over(part[ROWS][:], part["groups"][:])
    if "drawn" in file:
        part = file["drawn"]
        rows = torch.from_numpy(part[ROWS][:])
        drawn = Drawn(rows, part["owners"][:], part["second"][:], int(part.attrs["stored"]))
    store = file["store"]
    contents = Contents(store[ROWS][:], store["groups"][:], store["places"][:])
    return replace(_common([file], contents), pending=pending, drawn=drawn, oldest=int(file.attrs["oldest"]))


def _dealt(files: Sequence[h5py.File], mine: slice) -> BufferState:
    layout = _layout_from_text(files[0].attrs["layout"])
    shard, row = (part[mine] for part in _fair_order(files, layout))
    rows = np.zeros((len(shard), layout.words), dtype=np.int64)
    groups = np.zeros(len(shard), dtype=np.int64)
    for number, file in enumerate(files):
        here = np.flatnonzero(shard == number)
        groups[here] = file["store/groups"][:][row[here]]
        _copy_some(file["store"][ROWS], row[here], out=rows, places=here)
    contents = Contents(rows, groups, GroupIndex.of(groups.tolist()).places_of_rows())
    pending = None
    if parts := [file["pending"] for file in files if "pending" in file]:
        offered = np.concatenate([part[ROWS][:] for part in parts])[mine]
        of_groups = np.concatenate([part["groups"][:] for part in parts])[mine]
        pending = _handed_over(offered, of_groups)
    return replace(_common(files, contents), pending=pending)


def _fair_order(files: Sequence[h5py.File], layout: RowLayout) -> tuple[Rows, Rows]:
    # All rows of all shards in an order in which every k-th row is a fair part: which shard, which row.
    sizes = [len(file["store/groups"]) for file in files]
    shard = np.repeat(np.arange(len(files)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    if files[0].attrs["policy"] == "fifo":  # oldest first, age counted as a share of each shard
        ages = [
            (np.arange(size) - file.attrs["oldest"]) % size / size
            for size, file in zip(sizes, files, strict=True)
            if size
        ]
        order = np.lexsort((shard, np.concatenate(ages) if ages else shard))
    else:
        groups = np.concatenate([file["store/groups"][:] for file in files])
        places = np.concatenate([file["store/places"][:] for file in files])
        order = np.lexsort((shard, places, groups))
    if layout.has_identity:  # after an earlier dealing two ranks may hold the same sample
        word = layout.offsets[IDENTITY] // WORD
        known = np.concatenate([file["store"][ROWS][:, word] for file in files])[order]
        order = order[np.sort(np.unique(known, return_index=True)[1])]
    return shard[order], row[order]


def _copy_some(dataset: h5py.Dataset, wanted: Rows, *, out: NDArray[np.int64], places: Rows) -> None:
    # HDF5 reads scattered rows slowly: whole blocks are read, and what is wanted of them kept.
    for begin in range(0, len(dataset), CHUNK):
        here = (wanted >= begin) & (wanted < begin + CHUNK)
        if here.any():
            out[places[here]] = dataset[begin : begin + CHUNK][wanted[here] - begin]


def _common(files: Sequence[h5py.File], contents: Contents) -> BufferState:
    for name in ("layout", "policy", "seed", "capacity", "step"):
        found = {str(file.attrs[name]) for file in files}
        if len(found) > 1:
            raise SnapshotError(f"the shards differ in {name}: {found}; they must be of the same moment.")
    attributes = files[0].attrs
    return BufferState(
        layout=_layout_from_text(attributes["layout"]),
        policy=str(attributes["policy"]),
        seed=int(attributes["seed"]),
        capacity=int(attributes["capacity"]),
        contents=contents,
        oldest=0,
        threshold=min(int(file.attrs["threshold"]) for file in files),
        step=int(attributes["step"]),
        pending=None,
        drawn=None,
    )


def _handed_over(rows: NDArray[np.int64], groups: NDArray[np.int64]) -> Pending:
    return Pending(lambda: rows, groups.tolist())


# Files -----------------------------------------------------------------------------------------------------


def _path(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"buffer-{rank:05d}-of-{ranks:05d}.h5"


def _shards(folder: Path) -> tuple[list[Path], list[Path]]:
    found = sorted(folder.glob("buffer-*-of-*.h5"))
    counts = {path.stem.rpartition("-")[2] for path in found}
    if len(counts) != 1 or not next(iter(counts)).isdigit():
        raise SnapshotError(
            f"{folder} holds {', '.join(path.name for path in found) or 'no shards'}; it must hold the files "
            "buffer-RANK-of-RANKS.h5 of one snapshot, and of no other."
        )
    ranks = int(counts.pop())
    wanted = [_path(folder, rank, ranks) for rank in range(ranks)]
    return [path for path in wanted if path in found], [path for path in wanted if path not in found]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            _require_sound(file)
            yield file
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(
            f"{path} cannot be read as a shard of a buffer: {error}. It may be truncated or of another kind; "
            "take an older snapshot, or go on without it by removing it and partial=True."
        ) from error


def _require_sound(file: h5py.File) -> None:
    if file.attrs["format"] != FORMAT:
        raise SnapshotError(f"it has format {file.attrs['format']}; this version reads format {FORMAT}")
    words = _layout_from_text(file.attrs["layout"]).words
    for part in ("store", "pending", "drawn"):
        if part in file:
            shapes = {name: dataset.shape for name, dataset in file[part].items()}
            count = shapes[ROWS][0]
            if any(shape != ((count, words) if name == ROWS else (count,)) for name, shape in shapes.items()):
                raise SnapshotError(f"{part} has shapes {shapes}, but a row has {words} words")
    groups, places = file["store/groups"][:], file["store/places"][:]
    order = np.lexsort((places, groups))
    first = np.searchsorted(groups[order], groups[order])
    if not np.array_equal(places[order], np.arange(len(groups)) - first):
        raise SnapshotError("the places of rows within their groups are not consistent")


def _write(file: h5py.File, part: str, arrays: Mapping[str, NDArray[np.generic]]) -> h5py.Group:
    group = file.create_group(part)
    for name, array in arrays.items():
        group.create_dataset(name, data=array)
    return group


def _layout_as_text(layout: RowLayout) -> str:
    fields = [asdict(field) | {"dtype": str(field.dtype).removeprefix("torch.")} for field in layout.fields]
    return json.dumps(fields)


def _layout_from_text(text: str) -> RowLayout:
    fields = json.loads(text)
    for field in fields:
        dtype = getattr(torch, field["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise SnapshotError(f"field {field['name']!r} has dtype {field['dtype']!r}, which torch has not")
        field |= {"dtype": dtype, "shape": tuple(field["shape"])}
    return RowLayout(tuple(Field(**field) for field in fields))
