"""Checkpoints on disk: whole or not there, every byte accounted for, and nothing in them is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rehearsal_kit.errors import CheckpointError
from rehearsal_kit.run_folder import write_private, written_whole

FORMAT = 2
"""Of manifest and state; 2: with the identity of the run and its outcome."""
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
                with path.open("rb") as stream:
                    found = {
                        "bytes": os.fstat(stream.fileno()).st_size,
                        "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
                    }
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
        return sorted(name for name in self.files if name.endswith(".h5"))


def partial_folder(root: Path, number: int, generation: int) -> Path:
    """Where the ranks of a generation write a checkpoint before it is whole."""
    return root / f"{number:06d}.g{generation}.partial"


def write_state(folder: Path, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> list[Path]:
    """What rank 0 writes besides its part of the buffer; returns the files."""
    write_private(folder / STATE, json.dumps({"format": FORMAT, **state}, allow_nan=False))
    with written_whole(folder / TENSORS) as partial:
        save_file(dict(tensors), partial)
    return [folder / STATE, folder / TENSORS]


def measured(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, for a manifest."""
    found = {}
    for path in paths:
        with path.open("rb") as stream:
            found[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            }
    return found


def complete(folder: Path, *, run: str, ranks: int, error: float | None, files: Mapping[str, Any]) -> int:
    """Write the manifest and give the folder its name: from here on the checkpoint exists. Returns bytes."""
    manifest = {"format": FORMAT, "run": run, "ranks": ranks, "error": error, "files": files}
    write_private(folder / MANIFEST, json.dumps(manifest))
    _sync(folder)
    final = folder.with_name(folder.name.partition(".")[0])
    if final.exists():  # one that was refused: the run has come by here again
        shutil.rmtree(final)
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
    names = sorted(path for path in root.glob("*") if re.fullmatch(r"\d{6}", path.name))
    found: dict[int, Checkpoint] = {}
    unreadable: dict[int, str] = {}
    for folder in names:
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
            words = f"{type(error).__name__}: {error}"
            unreadable[number] = f"{folder / MANIFEST} is not the manifest of a checkpoint: {words}."
    return found, unreadable


def superfluous(found: Mapping[int, Checkpoint], *, last: int, best: int, pinned: set[int]) -> list[int]:
    """Which to remove: all but the last, the best by their error, and those that are pinned."""
    numbers = sorted(found)
    rated = sorted((c.error, number) for number, c in found.items() if c.error is not None)
    kept = {*numbers[-last:], *(number for _, number in rated[:best]), *tuple(pinned)}
    return [number for number in numbers if number not in kept]


def clear_partial(root: Path) -> None:
    """Remove what ranks left that died while they wrote."""
    for folder in root.glob("*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _words(file: Mapping[str, Any] | None) -> str:
    return "no such file" if file is None else f"{file['bytes']} bytes, SHA-256 {str(file['sha256'])[:16]}..."
