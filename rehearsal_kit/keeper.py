"""Writes checkpoints beside training: one background thread per rank, and rank 0 puts the parts together."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.checkpoint import (
    clear_partial,
    complete,
    find_checkpoints,
    measured,
    partial_folder,
    superfluous,
    write_state,
)
from rehearsal_kit.errors import CheckpointError
from rehearsal_kit.groups import Groups
from rehearsal_kit.lease import LeaseWatch
from rehearsal_kit.rounds import BufferState
from rehearsal_kit.run_folder import write_private
from rehearsal_kit.settings import Recovery
from rehearsal_kit.snapshots import write_shard
from rehearsal_kit.telemetry import CheckpointFailed, CheckpointKept

PARTS_TIMEOUT_S = 120.0
POLL_S = 0.01
FAILED = ""
"""In the list of files of a part, which has no other file without a name: why there is none."""


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What one rank hands over; nothing of it changes any more."""

    number: int
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """Empty except on rank 0."""
    buffer: BufferState | None
    error: float | None


class Keeper:
    """One rank's end. Used from the training thread; the files are written in a thread of its own.

    run: identity of the run, which stands in every checkpoint. lease: by which its folder is written to.
    """

    def __init__(
        self,
        root: Path,
        recovery: Recovery,
        groups: Groups,
        *,
        generation: int,
        run: str,
        lease: LeaseWatch,
    ) -> None:
        self.pinned: set[int] = set()
        """Checkpoints that are never removed: somebody went back to them."""
        self._root = root
        self._recovery = recovery
        self._groups = groups
        self._generation = generation
        self._run = run
        self._lease = lease
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"checkpoint-r{groups.rank}")
        self._jobs: list[Future[CheckpointKept | CheckpointFailed | None]] = []
        self._last = (time.monotonic(), 0)
        self._given_up = False
        root.mkdir(mode=0o700, exist_ok=True)
        if groups.rank == 0:
            clear_partial(root)

    def due(self, step: int) -> bool:
        """Whether it is time for the next, something was learned since the last, and that one is written."""
        when, where = self._last
        waited = time.monotonic() - when >= self._recovery.checkpoint_s
        return waited and step != where and all(job.done() for job in self._jobs)

    def take(self, copied: Copied, *, step: int) -> None:
        """Begin to write."""
        self._last = (time.monotonic(), step)
        self._jobs.append(self._thread.submit(self._write, copied))

    def finished(self) -> list[CheckpointKept | CheckpointFailed]:
        """What has become of those that were being written; each is told once, on rank 0."""
        done = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in done]
        return [result for job in done if (result := job.result()) is not None]

    def settle(self) -> None:
        """Wait until what this rank writes is written."""
        for job in self._jobs:
            job.result()

    def close(self) -> None:
        """Wait until all are written, and end the thread."""
        self._thread.shutdown()

    def abandon(self) -> None:
        """End the thread; what is being written by ranks that have failed is never completed."""
        self._given_up = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self, copied: Copied) -> CheckpointKept | CheckpointFailed | None:
        began = time.monotonic()
        folder = partial_folder(self._root, copied.number, self._generation)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._write_part(folder, copied)
            if self._groups.rank != 0:
                return None
            files = self._all_parts(folder)
            self._lease.require()  # before this checkpoint takes a number that another cluster may use now
            written = complete(
                folder, run=self._run, ranks=self._groups.ranks, error=copied.error, files=files
            )
            removed = self._prune()
        except Exception as error:  # a full disk must not end the training
            return self._failed(folder, copied, f"{type(error).__name__}: {error}")
        return CheckpointKept(
            checkpoint=copied.number,
            bytes=written,
            seconds=time.monotonic() - began,
            error=copied.error,
            removed=tuple(removed),
        )

    def _failed(self, folder: Path, copied: Copied, reason: str) -> CheckpointFailed | None:
        if self._groups.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            return CheckpointFailed(checkpoint=copied.number, reason=reason)
        try:  # so that rank 0 does not wait for this part, and can say why there is none
            write_private(folder / _part(self._groups.rank), json.dumps({FAILED: reason}))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def _write_part(self, folder: Path, copied: Copied) -> None:
        rank, ranks, written = self._groups.rank, self._groups.ranks, []
        if copied.buffer is not None:
            written.append(write_shard(folder, copied.buffer, rank=rank, ranks=ranks))
        if rank == 0:
            written += write_state(folder, copied.state, copied.tensors)
        write_private(folder / _part(rank), json.dumps(measured(written)))

    def _all_parts(self, folder: Path) -> dict[str, Any]:
        # Through the folder, not through a collective: those belong to the training thread.
        files: dict[str, Any] = {}
        deadline = time.monotonic() + PARTS_TIMEOUT_S
        for rank in range(self._groups.ranks):
            part = folder / _part(rank)
            while not part.exists():
                if self._given_up:
                    raise CheckpointError("the ranks have failed meanwhile.")
                if not folder.exists():
                    raise CheckpointError(f"rank {rank} could not write its part: is the disk full?")
                if time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} has not written its part in {PARTS_TIMEOUT_S:.0f} s.")
                time.sleep(POLL_S)
            written = json.loads(part.read_text())
            if FAILED in written:
                raise CheckpointError(f"rank {rank} could not write its part: {written[FAILED]}")
            files |= written
            part.unlink()
        return files

    def _prune(self) -> list[int]:
        found = find_checkpoints(self._root)
        keep = {"last": self._recovery.keep_last, "best": self._recovery.keep_best}
        removed = superfluous(found, **keep, pinned=self.pinned)
        for number in removed:
            shutil.rmtree(found[number].folder, ignore_errors=True)
        return removed


def _part(rank: int) -> str:
    return f"part-{rank:05d}.json"
