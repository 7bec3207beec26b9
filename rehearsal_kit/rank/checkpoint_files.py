"""Checkpoints on disk: whole or not there, every byte accounted for, and nothing in them is unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rehearsal_kit.base.digests import DIGITS
from rehearsal_kit.base.errors import CheckpointError, said
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.natural_order import in_natural_order
from rehearsal_kit.base.tensor_files import Stored, Written, nothing, write_tensors
from rehearsal_kit.buffer.snapshots import is_shard

FORMAT = 2
"""Format of manifest and state; 2: with the identity of the run and its outcome."""
MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = "learner.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole: its manifest was the last thing that was written."""

    number: int
    folder: Path
    ranks: int
    """That wrote it."""
    error: float | None
    """Mean watched error of the tasks evaluated last before it."""
    files: Mapping[str, Mapping[str, Any]]
    """Size and SHA-256 by name."""
    run: str
    """Identity of the run that wrote it."""
    format: int

    def verify(self, names: Sequence[str]) -> None:
        """CheckpointError unless these files are as they were written."""
        for name in names:
            path = self.folder / name
            try:
                found = _measured(path)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
            if name not in self.files or found != self.files[name]:
                raise CheckpointError(
                    f"{path} is not as it was written: {_words(found)} instead of "
                    f"{_words(self.files.get(name))}. It was damaged or changed since."
                )

    def state(self) -> dict[str, Any]:
        """What was written as plain values; verified."""
        self.verify([STATE])
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text())
        return state

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and all that the optimizer knows, by name; verified."""
        self.verify([TENSORS])
        try:
            return load_file(self.folder / TENSORS)
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / TENSORS} is not a safetensors file: {error}.") from error

    def shards(self) -> list[str]:
        """Names of the files of the buffer, in order of rank; none if there was no buffer yet."""
        return in_natural_order(name for name in self.files if is_shard(name))


def partial_folder(root: Path, number: int, generation: int) -> Path:
    """Where the ranks of a generation write a checkpoint before it is whole."""
    return root / f"{number:06d}.g{generation}.partial"


def write_state(
    folder: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    beat: Callable[[], None] = nothing,
) -> list[Written]:
    """What rank 0 writes besides its part of the buffer; `beat` is called after every block."""
    text = json.dumps({"format": FORMAT, **state}, allow_nan=False).encode()
    write_private(folder / STATE, text)
    stored = {name: Stored.of_tensor(tensor) for name, tensor in tensors.items()}
    return [
        Written(folder / STATE, len(text), hashlib.sha256(text).hexdigest()),
        write_tensors(folder / TENSORS, stored, beat=beat),
    ]


def complete(folder: Path, *, run: str, ranks: int, error: float | None, files: Mapping[str, Any]) -> int:
    """Write the manifest and give the folder its name: from here on the checkpoint exists. Returns bytes."""
    manifest = {"format": FORMAT, "run": run, "ranks": ranks, "error": error, "files": files}
    write_private(folder / MANIFEST, json.dumps(manifest))
    _sync(folder)
    final = folder.with_name(folder.name.partition(".")[0])
    discard(final)  # one that was refused: the run has come by here again
    folder.rename(final)
    _sync(final.parent)
    return sum(int(file["bytes"]) for file in files.values())


def find_checkpoints(root: Path) -> dict[int, Checkpoint]:
    """All that have a readable manifest, by number, oldest first."""
    return _looked_at(root)[0]


def unreadable_checkpoints(root: Path) -> dict[int, str]:
    """Those whose manifest cannot be read, and why."""
    return _looked_at(root)[1]


def _looked_at(root: Path) -> tuple[dict[int, Checkpoint], dict[int, str]]:
    # Seven digits from number 1,000,000 on: no name with more than six begins with a zero.
    named = (path for path in root.glob("*") if re.fullmatch(r"[0-9]{6}|[1-9][0-9]{6,}", path.name))
    found: dict[int, Checkpoint] = {}
    unreadable: dict[int, str] = {}
    for folder in sorted(named, key=lambda path: int(path.name)):
        number = int(folder.name)
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            found[number] = Checkpoint(
                number=number,
                folder=folder,
                ranks=int(manifest["ranks"]),
                error=manifest["error"],
                files=manifest["files"],
                run=str(manifest.get("run", "")),
                format=int(manifest["format"]),
            )
        except OSError as error:
            unreadable[number] = f"{folder / MANIFEST} cannot be read: {error.strerror or error}."
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable[number] = f"{folder / MANIFEST} is not the manifest of a checkpoint: {said(error)}."
    return found, unreadable


def superfluous(found: Mapping[int, Checkpoint], *, last: int, best: int, pinned: set[int]) -> list[int]:
    """Which to remove: all but the last, the best by their error, and those that are pinned."""
    numbers = sorted(found)
    rated = sorted((c.error, number) for number, c in found.items() if c.error is not None)
    kept = {*numbers[-last:], *(number for _, number in rated[:best]), *tuple(pinned)}
    return [number for number in numbers if number not in kept]


def clear_partial(root: Path) -> None:
    """Remove what ranks left that died while they wrote, or while they removed."""
    for folder in (*root.glob("*.partial"), *root.glob("*.gone")):
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a folder, if it is there, so that nobody finds half of it and nobody writes into it any more."""
    if folder.is_symlink() or not folder.is_dir():
        return
    gone = folder.with_name(f"{folder.name.partition('.')[0]}.{uuid.uuid4().hex[:8]}.gone")
    with contextlib.suppress(OSError):  # on a disk that has failed: the next start tries again
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _words(file: Mapping[str, Any] | None) -> str:
    return (
        "no such file"
        if file is None
        else f"{file['bytes']} bytes, SHA-256 {str(file['sha256'])[:DIGITS]}..."
    )
