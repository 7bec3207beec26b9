"""How a rank goes on from a checkpoint: which one, what is read of it, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rehearsal_kit.base.errors import CheckpointError, ReplayError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.snapshots import read_shards
from rehearsal_kit.buffer.states import BufferState
from rehearsal_kit.rank.checkpoint_files import FORMAT, Checkpoint, find_checkpoints, unreadable_checkpoints
from rehearsal_kit.record.effects import Effects, effects_of, segments
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.replay_queue import LEAVES, Entry, Position
from rehearsal_kit.record.run_folder import RunFolder


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory, every byte of it verified."""

    number: int
    ranks: int
    """That wrote it."""
    state: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    buffer: BufferState | None


@dataclass(frozen=True)
class Candidates:
    """Checkpoints that a run may go on from, the newest first; the same on every rank."""

    places: tuple[tuple[int, Position], ...]
    """Number, and where the ledger says that it was taken."""
    refused: tuple[tuple[int, str], ...]
    """Those that are there and cannot even be looked at, and why."""


def load_checkpoint(run: RunFolder, number: int, groups: ProcessGroups, *, identity: str) -> LoadedCheckpoint:
    """What this rank needs of a checkpoint; CheckpointError if it is not there or not as it was written.

    identity: of the run; a checkpoint of another one is refused.
    """
    found = find_checkpoints(run.checkpoints)
    if number not in found:
        raise CheckpointError(
            f"run {run.path} has no checkpoint {number}; it has {', '.join(map(str, found)) or 'none'}."
        )
    checkpoint = found[number]
    if checkpoint.format != FORMAT:
        raise CheckpointError(
            f"{checkpoint.folder} has format {checkpoint.format}, this version of rehearsal-kit reads "
            f"{FORMAT}; go on with the version that wrote it."
        )
    if checkpoint.run != identity:
        raise CheckpointError(
            f"{checkpoint.folder} is of run {checkpoint.run or 'without identity'}, this one is "
            f"{identity or 'without identity'}; was it copied from another run folder?"
        )
    return LoadedCheckpoint(
        number, checkpoint.ranks, checkpoint.state(), checkpoint.tensors(), _buffer(checkpoint, groups)
    )


def find_candidates(run: RunFolder, effects: Effects, groups: ProcessGroups) -> Candidates:
    """Which checkpoints to try, as rank 0 finds them; all ranks call this together."""
    places: list[tuple[int, Position]] = []
    refused: list[tuple[int, str]] = []
    if groups.rank == 0:
        there, unreadable = find_checkpoints(run.checkpoints), unreadable_checkpoints(run.checkpoints)
        numbers = sorted(effects.numbers, reverse=True)
        places = [(number, effects.place_of(number)) for number in numbers if number in there]
        refused = [(number, unreadable[number]) for number in numbers if number in unreadable]
    found = json.loads(groups.broadcast(json.dumps([places, refused])))
    return Candidates(
        tuple((number, (branch, step)) for number, (branch, step) in found[0]),
        tuple((number, words) for number, words in found[1]),
    )


def effects_recorded(run: RunFolder, groups: ProcessGroups) -> Effects:
    """What the ledger of a run says, on rank 0; nothing on the others."""
    return effects_of(read_ledger(run.effects)) if groups.rank == 0 else Effects()


def next_segment(recorded: RunFolder, run: RunFolder, groups: ProcessGroups) -> list[Entry]:
    """What comes next of another run that this one replays, as far as one number of ranks made it; on rank 0.

    A replay writes down what it follows, so its own ledger says where it is. ReplayError on rank 0 where
    these are not the ranks that made it.
    """
    if groups.rank != 0:
        return []
    passed = len(read_ledger(run.effects))
    parts = segments(read_ledger(recorded.effects))
    left = [part for at, part in enumerate(parts) if sum(map(len, parts[:at])) == passed]
    if not left:
        if parts:
            raise ReplayError(
                f"{run.path} has replayed {passed} effects of {recorded.path}, which ends no part of it that "
                "one number of ranks had made; replay it again into a new folder."
            )
        return []
    ranks = left[0][0]["world_size"]
    if ranks != groups.ranks:
        raise ReplayError(
            f"the next {len(left[0])} effects of {recorded.path} were made by {ranks} ranks, but "
            f"{groups.ranks} replay them; bits can only be the same on the same number."
        )
    # What lies in the folder of that run is not in the folder of the one that follows it.
    return [{**each, "path": recorded.find(each["path"])} if "path" in each else each for each in left[0]]


def went_back_to(run: RunFolder) -> set[int]:
    """Checkpoints that a run went on from as another branch, according to its ledger."""
    left = [e for e in read_ledger(run.effects) if e["kind"] in LEAVES and "refused" not in e]
    return {entry["checkpoint"] for entry in left}


def _buffer(checkpoint: Checkpoint, groups: ProcessGroups) -> BufferState | None:
    shards = checkpoint.shards()
    if not shards:
        return None
    checkpoint.verify([shards[groups.rank]] if len(shards) == groups.ranks else shards)
    return read_shards(checkpoint.folder, rank=groups.rank, ranks=groups.ranks)
