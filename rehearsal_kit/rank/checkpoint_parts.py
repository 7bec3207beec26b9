"""The parts of a checkpoint that ranks write at once: each shows that it is alive, rank 0 puts them together.

They hear of each other through the folder, not through a collective: those belong to the training thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rehearsal_kit.base.errors import CheckpointError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.patience import Patience

FAILED = ""
"""Key of why there is no part, in its list of files, which has no other file without a name."""
GIVEN_UP = "given-up"
SOON_S, LATER_S = 0.01, 0.5
"""Seconds between two looks at the folder: at first, and later."""
PULSE_S = 1.0
"""Seconds between two signs of life, at most."""


class CheckpointPart:
    """What one rank other than 0 writes into the folder that rank 0 has made."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._alive = _alive(folder, rank)
        self._file = _file(folder, rank)
        self._given_up = folder / GIVEN_UP
        self._asked = 0.0

    @contextlib.contextmanager
    def alive(self, patience_s: float) -> Iterator[None]:
        """Show within the block, in a thread of its own, that this rank has not given up.

        patience_s: how long rank 0 waits for a sign.
        """
        os.close(os.open(self._alive, os.O_WRONLY | os.O_CREAT, 0o600))
        over = threading.Event()

        def beat() -> None:
            with contextlib.suppress(OSError):  # the folder is gone: `require_wanted` will notice
                while not over.wait(min(PULSE_S, patience_s / 4)):
                    os.utime(self._alive)

        thread = threading.Thread(target=beat, name=f"{self._alive.name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._alive.unlink(missing_ok=True)

    def require_wanted(self) -> None:
        """CheckpointError once rank 0 has given the checkpoint up, or has gone; looks twice a second."""
        if time.monotonic() - self._asked > LATER_S:
            self._asked = time.monotonic()
            if self._given_up.exists() or not self._alive.exists():
                raise CheckpointError("rank 0 has given this checkpoint up.")

    def done(self, files: Mapping[str, Any]) -> None:
        """All files of this part are whole: size and SHA-256 by name."""
        write_private(self._file, json.dumps(dict(files)))

    def failed(self, reason: str) -> None:
        """There will be no part, so that rank 0 does not wait for it, and can say why."""
        with contextlib.suppress(OSError):  # the sign of life ends all the same
            self.done({FAILED: reason})


class CheckpointParts:
    """Rank 0's view of what the other ranks write."""

    def __init__(self, folder: Path, ranks: int, *, patience_s: float) -> None:
        self._folder = folder
        self._missing = set(range(1, ranks))
        self._patience_s = patience_s
        self._waiting: dict[int, Patience] = {}

    def collect(self, require_going: Callable[[], None]) -> dict[str, Any]:
        """Size and SHA-256 of all files of all other ranks, once they are there.

        require_going: called now and then; what it raises ends the waiting. CheckpointError if a rank has
        failed, or shows no sign of life any more.
        """
        files: dict[str, Any] = {}
        for _ in _looks():
            for rank in sorted(self._missing):
                written = self._look(rank)
                if written is None:
                    continue
                self._missing.discard(rank)
                if FAILED in written:
                    raise CheckpointError(f"rank {rank} could not write its part: {written[FAILED]}")
                files |= written
                for left in (_file(self._folder, rank), _alive(self._folder, rank)):
                    left.unlink(missing_ok=True)
            if not self._missing:
                break
            require_going()
        return files

    def give_up(self, require_going: Callable[[], None]) -> None:
        """Have the others stop, and wait until none of them writes any more."""
        with contextlib.suppress(OSError):  # a full disk: then they write to their end
            (self._folder / GIVEN_UP).touch(mode=0o600)
        with contextlib.suppress(CheckpointError):
            for _ in _looks():
                self._missing = {rank for rank in self._missing if not self._has_ended(rank)}
                if not self._missing:
                    break
                require_going()

    def _has_ended(self, rank: int) -> bool:
        try:
            return self._look(rank) is not None
        except CheckpointError:  # it has died
            return True

    def _look(self, rank: int) -> dict[str, Any] | None:
        """What a rank has written; None if it still writes."""
        sign = _changed(_alive(self._folder, rank))
        file = _file(self._folder, rank)
        if file.exists():
            written: dict[str, Any] = json.loads(file.read_text())
            return written
        if not self._waiting.setdefault(rank, Patience(self._patience_s)).lasts(sign):
            raise CheckpointError(
                f"rank {rank} has shown no sign of life in {self._patience_s:.0f} s while it should write "
                "its part. Is its machine gone, or its disk full?"
            )
        return None


def _looks() -> Iterator[None]:
    """Pauses between looks, ever longer: a thousand ranks must not keep the disk busy by looking at it."""
    pause_s = SOON_S
    while True:
        yield
        time.sleep(pause_s)
        pause_s = min(LATER_S, 1.5 * pause_s)


def _changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def _alive(folder: Path, rank: int) -> Path:
    return folder / f"alive-{rank:05d}"


def _file(folder: Path, rank: int) -> Path:
    return folder / f"part-{rank:05d}.json"
