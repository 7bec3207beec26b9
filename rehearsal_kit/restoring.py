"""From a checkpoint back to a rank that goes on: which one, what is read of it, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rehearsal_kit.checkpoint import Checkpoint, find_checkpoints
from rehearsal_kit.errors import CheckpointError, RehearsalKitError
from rehearsal_kit.groups import Groups
from rehearsal_kit.rounds import BufferState
from rehearsal_kit.run_folder import RunFolder, read_ledger
from rehearsal_kit.script import Script
from rehearsal_kit.snapshots import read_shards


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, every byte of it verified."""

    number: int
    state: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    buffer: BufferState | None


@dataclass(frozen=True)
class Beginning:
    """Where a rank begins, and what takes effect again from there."""

    loaded: Loaded | None
    """None: at the very beginning."""
    script: Script
    """On rank 0; empty on the others."""
    refused: tuple[tuple[int, str], ...]
    """Checkpoints that could not be used, and why."""


def load_checkpoint(run: RunFolder, number: int, groups: Groups) -> Loaded:
    """What this rank needs of a checkpoint; CheckpointError if it is not there or not as it was written."""
    found = find_checkpoints(run.checkpoints)
    if number not in found:
        raise CheckpointError(
            f"run {run.path} has no checkpoint {number}; it has {', '.join(map(str, found)) or 'none'}."
        )
    checkpoint = found[number]
    return Loaded(number, checkpoint.state(), checkpoint.tensors(), _buffer(checkpoint, groups))


def find_beginning(run: RunFolder, groups: Groups) -> Beginning:
    """The newest checkpoint that every rank can read; all ranks call this together.

    Effects after it, as the ledger has them, are the script.
    """
    entries = read_ledger(run.effects) if groups.rank == 0 else []
    taken = [
        at for at, entry in enumerate(entries) if entry["kind"] == "TakeCheckpoint" and "refused" not in entry
    ]
    whole = [n for n in sorted(find_checkpoints(run.checkpoints), reverse=True) if n <= len(taken)]
    refused: list[tuple[int, str]] = []
    for number in json.loads(groups.broadcast(json.dumps(whole))):
        trouble, loaded = "", None
        try:
            loaded = load_checkpoint(run, number, groups)
        except (RehearsalKitError, ValueError, KeyError, TypeError) as error:
            trouble = f"{error} (rank {groups.rank})"
        reason = next((text for text in groups.gather(trouble) if text), "")
        if loaded is not None and not reason:
            after = taken[number - 1] + 1 if groups.rank == 0 else 0
            return Beginning(loaded, Script(entries[after:]), tuple(refused))
        refused.append((number, reason))
    return Beginning(None, Script(entries), tuple(refused))


def went_back_to(run: RunFolder) -> set[int]:
    """Checkpoints that a run was rolled back to, according to its ledger."""
    return {entry["checkpoint"] for entry in read_ledger(run.effects) if entry["kind"] == "RollBack"}


def recorded_script(run: RunFolder) -> Script:
    """All effects of another run, to be followed from its beginning."""
    entries = read_ledger(run.effects)
    # What lies in the folder of that run is not in the folder of the one that follows it.
    found = [{**e, "path": run.find(e["path"])} if "path" in e else e for e in entries]
    return Script(found, ours=False)


def _buffer(checkpoint: Checkpoint, groups: Groups) -> BufferState | None:
    shards = checkpoint.shards()
    if not shards:
        return None
    checkpoint.verify([shards[groups.rank]] if len(shards) == groups.ranks else shards)
    return read_shards(checkpoint.folder, rank=groups.rank, ranks=groups.ranks)
