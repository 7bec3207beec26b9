"""Writes checkpoints beside training: one background thread per rank, and rank 0 puts the parts together.

    training thread of all ranks      ready (rank 0 makes the folder) --> all meet --> take (a frozen copy)
    background thread of rank 1, 2    write the shard of its buffer --> say which files, or why not
    background thread of rank 0       write its shard, state and tensors --> collect what the others say
                                      --> complete: a manifest, flushed; the folder gets its name --> prune

A folder that has its name is whole: whatever ends the ranks before leaves a partial one, which nobody reads
and the next start removes. Ranks that write give signs of life, so that a slow disk is waited for and a lost
rank is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.base.errors import CheckpointError, said
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.base.thread_priority import step_back
from rehearsal_kit.buffer.snapshots import write_shard
from rehearsal_kit.buffer.states import BufferState
from rehearsal_kit.rank.checkpoint_files import (
    clear_partial,
    complete,
    discard,
    find_checkpoints,
    partial_folder,
    superfluous,
    write_state,
)
from rehearsal_kit.rank.checkpoint_parts import CheckpointPart, CheckpointParts
from rehearsal_kit.record.lease import LeaseWatch
from rehearsal_kit.record.records import CheckpointFailed, CheckpointKept

FAILED_MEANWHILE = "the ranks have failed meanwhile."
MOST_WAITING = 2
"""Checkpoints that may wait to be written: each holds weights once more, and rows that have changed since."""
PARTS_TIMEOUT_S = 120.0
"""Without a sign of life from a rank that writes for so long, its checkpoint is given up."""
LAST_S = 2.0
"""What the writer has once the ranks have failed: less than the grace after which a worker is restarted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointCopy:
    """What one rank hands over; nothing of it changes any more."""

    number: int
    state: dict[str, Any]
    tensors: Callable[[], Mapping[str, torch.Tensor]]
    """Waits for what is still copied; none except on rank 0."""
    buffer: BufferState | None
    """Frozen: to be released once it was written, or never will be."""
    error: float | None

    def release(self) -> None:
        """Nobody will write this any more."""
        if self.buffer is not None:
            self.buffer.release()


class CheckpointWriter:
    """One rank's end. Used from the training thread; the files are written in a thread of its own.

    run: identity of the run, which stands in every checkpoint. lease: by which its folder is written to.
    """

    def __init__(
        self,
        root: Path,
        recovery: Recovery,
        groups: ProcessGroups,
        *,
        generation: int,
        run: str,
        lease: LeaseWatch,
    ) -> None:
        self.pinned: set[int] = set()
        """Checkpoints that are never removed: somebody went back to them."""
        self.beats = 0
        """Grows with every block that is written; another thread watches it."""
        self._root = root
        self._recovery = recovery
        self._groups = groups
        self._generation = generation
        self._run = run
        self._lease = lease
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix=f"checkpoint-r{groups.rank}", initializer=step_back
        )
        self._jobs: list[Future[CheckpointKept | CheckpointFailed | None]] = []
        self._waiting: list[CheckpointCopy] = []
        """Not written yet."""
        self._unready: dict[int, str] = {}
        """Why there is no folder for a checkpoint, by its number; on rank 0."""
        self._last = (time.monotonic(), 0)
        self._failed = False
        """The ranks have: nobody writes his part any more who has not begun."""
        self._stopped = False
        """What is being written is not written to its end."""
        root.mkdir(mode=0o700, exist_ok=True)
        if groups.rank == 0:
            clear_partial(root)

    def due(self, step: int) -> bool:
        """Whether it is time for the next, something was learned since the last, and that one is written."""
        when, where = self._last
        waited = time.monotonic() - when >= self._recovery.checkpoint_s
        return waited and step != where and all(job.done() for job in self._jobs)

    def ready(self, number: int) -> None:
        """Make the folder into which all ranks write, on rank 0 and before any of them does.

        Where as many as may be are still to be written, this waits until one of them is.
        """
        while len(self._waiting) >= MOST_WAITING:  # the writer beats, so a disk that hangs is a stall
            wait([job for job in self._jobs if not job.done()], return_when=FIRST_COMPLETED)
        if self._groups.rank == 0:
            try:
                partial_folder(self._root, number, self._generation).mkdir(mode=0o700)
            except OSError as error:  # it is told when this checkpoint is taken
                self._unready[number] = said(error)

    def take(self, copied: CheckpointCopy, *, step: int) -> None:
        """Begin to write; all ranks have met since `ready`."""
        self._last = (time.monotonic(), step)
        self._waiting.append(copied)
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
        """End the thread: what is written in a moment is; parts of ranks that failed are not waited for."""
        self._failed = True
        wait(self._jobs, LAST_S)
        self._stopped = True
        self._thread.shutdown(cancel_futures=True)
        for copied in self._waiting:  # nobody has begun with these: the next ranks need their memory
            copied.release()

    def _write(self, copied: CheckpointCopy) -> CheckpointKept | CheckpointFailed | None:
        folder = partial_folder(self._root, copied.number, self._generation)
        try:
            if self._groups.rank != 0:
                self._write_part(folder, copied)
                return None
            return self._write_whole(folder, copied)
        finally:
            copied.release()
            self._waiting.remove(copied)

    def _write_part(self, folder: Path, copied: CheckpointCopy) -> None:
        part = CheckpointPart(folder, self._groups.rank)

        def beat() -> None:
            self._beat()
            part.require_wanted()

        try:
            with part.alive(PARTS_TIMEOUT_S):
                try:
                    part.done(self._write_buffer(folder, copied, beat))
                except Exception as error:  # a full disk must not end the training
                    part.failed(said(error))
        except OSError:  # there is no folder: rank 0 could not make it, or has given up already
            return

    def _write_whole(self, folder: Path, copied: CheckpointCopy) -> CheckpointKept | CheckpointFailed:
        began = time.monotonic()
        if reason := self._unready.pop(copied.number, ""):
            return CheckpointFailed(checkpoint=copied.number, reason=reason)
        parts = CheckpointParts(folder, self._groups.ranks, patience_s=PARTS_TIMEOUT_S)
        try:
            files = self._write_buffer(folder, copied, self._beat)
            for written in write_state(folder, copied.state, copied.tensors(), beat=self._beat):
                files |= written.measured()
            files |= parts.collect(self._require_going)
            self._lease.require()  # before this checkpoint takes a number that another cluster may use now
            written_bytes = complete(
                folder, run=self._run, ranks=self._groups.ranks, error=copied.error, files=files
            )
            removed = self._prune()
        except Exception as error:  # a full disk must not end the training
            parts.give_up(self._require_going)
            if not self._failed:  # else others may write still, and it is left to the next start
                discard(folder)
            return CheckpointFailed(checkpoint=copied.number, reason=said(error))
        return CheckpointKept(
            checkpoint=copied.number,
            bytes=written_bytes,
            seconds=time.monotonic() - began,
            error=copied.error,
            removed=tuple(removed),
        )

    def _write_buffer(self, folder: Path, copied: CheckpointCopy, beat: Callable[[], None]) -> dict[str, Any]:
        if copied.buffer is None:
            return {}
        ranks = self._groups.ranks
        return write_shard(folder, copied.buffer, rank=self._groups.rank, ranks=ranks, beat=beat).measured()

    def _beat(self) -> None:
        self.beats += 1
        if self._stopped:
            raise CheckpointError(FAILED_MEANWHILE)

    def _require_going(self) -> None:
        if self._failed:
            raise CheckpointError(FAILED_MEANWHILE)

    def _prune(self) -> list[int]:
        found = find_checkpoints(self._root)
        keep = {"last": self._recovery.keep_last, "best": self._recovery.keep_best}
        removed = superfluous(found, **keep, pinned=self.pinned)
        for number in removed:
            discard(found[number].folder)
        return removed
