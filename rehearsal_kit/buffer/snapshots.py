"""The distributed buffer on disk: one safetensors file per rank, restored onto any number of ranks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SnapshotError
from rehearsal_kit.base.tensor_files import Sliced, Stored, Written, nothing, per_block, write_tensors
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.group_index import GroupIndex
from rehearsal_kit.buffer.policies import POLICIES, AbstractPolicy, PolicyState, new_policy
from rehearsal_kit.buffer.row_layout import IDENTITY, WORD, RowLayout
from rehearsal_kit.buffer.row_losses import Replayed
from rehearsal_kit.buffer.shards import (
    DRAWN,
    FORMAT,
    LEARNED,
    LOSSES,
    NEWEST,
    OLD_SUFFIX,
    PENDING,
    REPLAYED,
    ROWS,
    SEATS,
    STORE,
    SUFFIX,
    Shard,
    ShardRows,
    layout_as_text,
    layout_of,
    open_shard,
    state_as_text,
    state_of,
)
from rehearsal_kit.buffer.states import BufferState, Drawn, Pending
from rehearsal_kit.buffer.store import Contents

WORDS = np.dtype("<i8")
COMMON = ("layout", "policy", "seed", "capacity", "step")
"""The same in all shards of one moment."""


def write_shard(
    folder: Path, state: BufferState, *, rank: int, ranks: int, beat: Callable[[], None] = nothing
) -> Written:
    """Write what one rank holds; the file is whole or not there, and readable by its owner only.

    It is written in blocks, so that other threads go on. beat: called after every block; what it raises
    ends the writing.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    contents, pending, drawn = state.contents, state.pending, state.drawn
    numbers: dict[str, Sliced] = {
        f"{STORE}/{ROWS}": contents.rows,
        f"{STORE}/groups": contents.groups,
        f"{STORE}/places": contents.places,
    }
    if contents.losses is not None and contents.seats is not None:
        numbers |= {LOSSES: contents.losses.view(np.int64), SEATS: contents.seats}
    about = {name: str(getattr(state, name)) for name in COMMON[1:]}
    about |= state_as_text(state.policy_state)
    about |= {"format": str(FORMAT), "layout": layout_as_text(state.layout)}
    if pending is not None:
        numbers |= {f"{PENDING}/{ROWS}": pending.rows()}
        numbers |= {f"{PENDING}/groups": np.array(pending.groups, dtype=np.int64)}
        numbers |= {NEWEST: np.array(pending.newest, dtype=np.int64)}
        if len(pending.replayed):
            numbers |= {REPLAYED: pending.replayed.identities}
            numbers |= {LEARNED: pending.replayed.losses.view(np.int64)}
    if drawn is not None:
        numbers |= {f"{DRAWN}/{ROWS}": drawn.rows.numpy(), f"{DRAWN}/owners": drawn.owners}
        about["stored"] = str(drawn.stored)
    tensors = {name: Stored.of(each, WORDS) for name, each in numbers.items()}
    if drawn is not None:
        tensors[f"{DRAWN}/second"] = Stored.of(drawn.second, np.dtype("?"))
    return write_tensors(_path(folder, rank, ranks), tensors, about=about, beat=beat)


def read_shards(folder: Path, *, rank: int, ranks: int, partial: bool = False) -> BufferState:
    """What this rank goes on with; for `DistributedBuffer.restore`, on all ranks alike.

    On as many ranks as wrote the shards everything continues as it would have. On another number the same
    samples are dealt anew, evenly by group (or by age), and the first mini-batch is not augmented. The rows
    of the store stay in the files until it is restored.

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
        return _whole(open_shard(paths[rank]))
    return _dealt([open_shard(path) for path in paths], rank=rank, ranks=ranks)


def _whole(shard: Shard) -> BufferState:
    drawn = pending = None
    if f"{PENDING}/{ROWS}" in shard:
        pending = _handed_over([shard], slice(None))
    if f"{DRAWN}/{ROWS}" in shard:
        rows = torch.from_numpy(shard.read(f"{DRAWN}/{ROWS}"))
        owners, second = shard.read(f"{DRAWN}/owners"), shard.read(f"{DRAWN}/second")
        drawn = Drawn(owners, second, int(shard.about["stored"]), rows)
    count, words = shard.shape(f"{STORE}/{ROWS}")
    every = np.arange(count)
    contents = Contents(
        ShardRows((count, words), ((shard, every, every),)),
        shard.read(f"{STORE}/groups"),
        shard.read(f"{STORE}/places"),
        _losses(shard),
        shard.read(SEATS) if SEATS in shard else None,
    )
    state = _state_of(shard, _new_policy(shard))
    return replace(_common(shard, contents, state), pending=pending, drawn=drawn)


def _dealt(shards: Sequence[Shard], *, rank: int, ranks: int) -> BufferState:
    _require_one_moment(shards)
    layout, mine = layout_of(shards[0]), slice(rank, None, ranks)
    of, row = (part[mine] for part in _fair_order(shards, layout))
    groups, losses = np.zeros(len(of), dtype=np.int64), np.full(len(of), np.nan)
    seats = np.zeros(len(of), dtype=np.int64) if all(SEATS in shard for shard in shards) else None
    sources = []
    for number, shard in enumerate(shards):
        here = np.flatnonzero(of == number)
        groups[here] = shard.read(f"{STORE}/groups")[row[here]]
        losses[here] = _losses(shard)[row[here]]
        if seats is not None:
            seats[here] = shard.read(SEATS)[row[here]]
        order = np.argsort(row[here])
        sources.append((shard, row[here][order], here[order]))
    rows = ShardRows((len(of), layout.words), tuple(sources))
    places = GroupIndex.of(groups.tolist()).places_of_rows()
    contents = Contents(rows, groups, places, losses, seats)
    parts = [shard for shard in shards if f"{PENDING}/{ROWS}" in shard]
    pending = _handed_over(parts, mine) if parts else None
    policy = _new_policy(shards[0])
    states = policy.dealt([_state_of(shard, policy) for shard in shards], ranks)
    return replace(_common(shards[0], contents, states[rank]), pending=pending)


def _fair_order(shards: Sequence[Shard], layout: RowLayout) -> tuple[Rows, Rows]:
    """Shard and row of all rows of all shards, in an order in which every k-th row is a fair part."""
    sizes = [shard.shape(f"{STORE}/groups")[0] for shard in shards]
    of = np.repeat(np.arange(len(shards)), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    ages = [_ages(shard, size) for shard, size in zip(shards, sizes, strict=True) if size]
    by_age = [age / len(age) for age in ages if age is not None]
    if by_age:  # oldest first, age counted as a share of each shard
        order = np.lexsort((of, np.concatenate(by_age)))
    else:
        groups = np.concatenate([shard.read(f"{STORE}/groups") for shard in shards])
        places = np.concatenate([shard.read(f"{STORE}/places") for shard in shards])
        order = np.lexsort((of, places, groups))
    if layout.has_identity:  # after an earlier dealing two ranks may hold the same sample
        word = layout.offsets[IDENTITY] // WORD
        known = np.concatenate([_column(shard, word) for shard in shards])[order]
        order = order[np.sort(np.unique(known, return_index=True)[1])]
    return of[order], row[order]


def _ages(shard: Shard, rows: int) -> Rows | None:
    policy = _new_policy(shard)
    policy.restore(_state_of(shard, policy))
    return policy.ages(rows)


def _state_of(shard: Shard, policy: AbstractPolicy) -> PolicyState:
    found = state_of(shard)
    if missing := [name for name in policy.state() if name not in found]:
        raise SnapshotError(
            f"a shard of the policy {policy.name} lacks {', '.join(missing)}, which that remembers. Read it "
            "with the version that wrote it."
        )
    return {name: found[name] for name in policy.state()}


def _new_policy(shard: Shard) -> AbstractPolicy:
    name = shard.about["policy"]
    if name not in POLICIES:
        raise SnapshotError(
            f"a shard was written with the policy {name!r}, which is not there; known are "
            f"{', '.join(POLICIES)}. Read it with the version that wrote it."
        )
    return new_policy(name, int(shard.about["seed"]))


def _column(shard: Shard, word: int) -> NDArray[np.int64]:
    """One word of every row, without holding the rows."""
    count, words = shard.shape(f"{STORE}/{ROWS}")
    column, each = np.empty(count, np.int64), per_block(words * WORD)
    for begin in range(0, count, each):
        column[begin : begin + each] = shard.read(f"{STORE}/{ROWS}", begin, begin + each)[:, word]
    return column


def _require_one_moment(shards: Sequence[Shard]) -> None:
    for name in COMMON:
        found = {shard.about[name] for shard in shards}
        if len(found) > 1:
            raise SnapshotError(f"the shards differ in {name}: {found}; they must be of the same moment.")


def _common(shard: Shard, contents: Contents, policy_state: PolicyState) -> BufferState:
    about = shard.about
    return BufferState(
        layout=layout_of(shard),
        policy=about["policy"],
        seed=int(about["seed"]),
        capacity=int(about["capacity"]),
        contents=contents,
        policy_state=policy_state,
        step=int(about["step"]),
        pending=None,
        drawn=None,
    )


def _handed_over(shards: Sequence[Shard], mine: slice) -> Pending:
    """What the ranks of these shards had handed over, as far as it is this rank's."""

    def joined(name: str) -> NDArray[np.int64]:
        parts = [shard.read(name) for shard in shards if name in shard]
        return np.concatenate(parts)[mine] if parts else np.zeros(0, dtype=np.int64)

    rows, groups = joined(f"{PENDING}/{ROWS}"), joined(f"{PENDING}/groups")
    # Earlier versions did not write the newest groups.
    newest = [shard.read(NEWEST if NEWEST in shard else f"{PENDING}/groups") for shard in shards]
    replayed = Replayed.of(joined(REPLAYED), joined(LEARNED).view(np.float64))
    known = np.unique(np.concatenate(newest)).tolist()
    return Pending(lambda: rows, groups.tolist(), known, lambda: replayed)


def _losses(shard: Shard) -> NDArray[np.float64]:
    """The loss of each row when it was last replayed, NaN where it never was."""
    if LOSSES not in shard:
        return np.full(shard.shape(f"{STORE}/{ROWS}")[0], np.nan)
    losses: NDArray[np.float64] = shard.read(LOSSES).view(np.float64)
    return losses


# Files -----------------------------------------------------------------------------------------------------


def _path(folder: Path, rank: int, ranks: int, *, suffix: str = SUFFIX) -> Path:
    return folder / f"buffer-{rank:05d}-of-{ranks:05d}{suffix}"


def is_shard(name: str) -> bool:
    """Whether a file of this name belongs to a buffer."""
    return re.fullmatch(r"buffer-\d{5,}-of-\d{5,}\.(safetensors|h5)", name) is not None


def _shards(folder: Path) -> tuple[list[Path], list[Path]]:
    found = sorted(path for path in folder.glob("buffer-*-of-*") if path.suffix in (SUFFIX, OLD_SUFFIX))
    counts = {(path.stem.rpartition("-")[2], path.suffix) for path in found}
    if len(counts) != 1 or not next(iter(counts))[0].isdigit():
        raise SnapshotError(
            f"{folder} holds {', '.join(path.name for path in found) or 'no shards'}; it must hold the files "
            f"buffer-RANK-of-RANKS{SUFFIX} of one snapshot, and of no other."
        )
    count, suffix = counts.pop()
    wanted = [_path(folder, rank, int(count), suffix=suffix) for rank in range(int(count))]
    return [path for path in wanted if path in found], [path for path in wanted if path not in found]
