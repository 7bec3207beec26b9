"""The lease on a run folder: whoever holds it writes there, and nobody else; it outlives no crash for long.

A small file says who holds it, and a lock that the living holder keeps says that it lives. Locks may not
reach from one machine to another, so the holder also touches the file now and then. How long ago that was is
judged by the clock of the file system alone, which all machines share.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import LeaseError
from rehearsal_kit.base.process_identity import ProcessIdentity
from rehearsal_kit.record.ledger import last_generation
from rehearsal_kit.record.run_folder import LEASE, LOCK, RunFolder

BEAT_S = 5.0
"""Seconds between two signs of life of a holder."""
GONE_S = 60.0
"""A holder on another machine that has given none for so long is gone."""
LOOK_S = 0.5
"""Seconds between two looks of a rank at the lease under which it writes."""
LOCK_PATIENCE_S = 0.5
"""Whoever only looks holds the lock for a moment, too."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no locks."""
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease, as its file says."""

    token: str
    """Secret of nobody, but no two leases have the same."""
    process: ProcessIdentity
    place: Mapping[str, str]
    """`Cluster.place` of the cluster that it belongs to; empty where it belongs to none."""
    generation: int
    """Number of the first set of ranks that is started under this lease."""
    folder: str
    inode: int
    """Inode of the folder: it is the same after a folder was moved, and another one in a copy."""

    @staticmethod
    def read(path: str | Path, *, folder: int | None = None) -> Holder | None:
        """What this file says; None where it says nothing that can be read. FileNotFoundError without it.

        folder: the open folder that a relative path belongs to.
        """
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as stream:
            content = stream.read()
        try:
            holder: Holder = record_of(Holder, json.loads(content))
        except (ValueError, TypeError):
            return None
        return holder

    def words(self, run: RunFolder) -> str:
        """Where the run is, and what can be typed there."""
        process = self.process
        where = f"process {process.number} on {process.host}"
        there = "" if process.is_here else f" on {process.host}"
        if not self.place:
            return f"{run.path} is being written to by {where}; end that first, or choose another folder."
        attach = f"rk.attach({str(run.path)!r})"
        if "folder" in self.place:
            folder = Path(self.place["folder"])
            name = folder.name
            end = "launch --cancel" if folder.parent.name == "jobs" else "stop"
            return (
                f"run {run.path} is under way on cluster {name} ({where}), and no other may write to its "
                f"folder meanwhile. To join it, type{there}: {attach}; to end it: rehearsal-kit {end} {name}"
            )
        return (
            f"run {run.path} is under way on the cluster of {self.place.get('scheduler_file')} ({where}), "
            f"and no other may write to its folder meanwhile. To join it: {attach}; to end it: "
            f"rk.attach({str(run.path)!r}, take=True).close()"
        )


class RunLease:
    """Held from `take` to `release`. It stays with the folder where that is moved."""

    def __init__(self, holder: Holder, run: RunFolder, *, folder: int, lock: int) -> None:
        """Owns the two descriptors from now on."""
        self.token = holder.token
        self.generation = holder.generation
        """Number of the first set of ranks that may be started."""
        self._run = run
        self._open: tuple[int, int] | None = (folder, lock)
        self._guard = threading.Lock()
        """A sign of life is given from another thread."""

    @staticmethod
    def take(run: RunFolder, *, place: Mapping[str, str]) -> RunLease:
        """Become the one that writes to this folder.

        LeaseError, which says where the run is, unless nobody holds it or who did is known to be gone.
        """
        with _opened(run) as opened:
            folder, lock = opened
            with contextlib.suppress(FileNotFoundError):
                _clear_away(run, folder, gone=_require_gone(run, opened, fcntl.LOCK_EX))
            holder = _write(run, folder, place)
            # The lock belongs to the description of the open file, so these keep it.
            return RunLease(holder, run, folder=os.dup(folder), lock=os.dup(lock))

    def beat(self) -> None:
        """Give a sign of life; LeaseError if somebody else has taken the folder over meanwhile."""
        with self._guard:
            if self._open is not None:
                _require_token(self._run, self.token, folder=self._open[0])
                os.utime(LEASE, dir_fd=self._open[0])

    def release(self) -> None:
        """Let others write; a second time, or where it was lost, nothing happens."""
        with self._guard:
            opened, self._open = self._open, None
        if opened is None:
            return
        folder, lock = opened
        try:
            with contextlib.suppress(LeaseError):
                _require_token(self._run, self.token, folder=folder)
                os.unlink(LEASE, dir_fd=folder)
        finally:
            os.close(lock)
            os.close(folder)


def require_free(run: RunFolder) -> None:
    """LeaseError, which says where the run is, unless nobody holds it or who did is known to be gone."""
    with _opened(run) as opened, contextlib.suppress(FileNotFoundError):
        _require_gone(run, opened, fcntl.LOCK_SH)


class LeaseWatch:
    """Tells those that write under a lease of another process, such as ranks, whether that still holds it."""

    def __init__(self, run: RunFolder, token: str) -> None:
        """token: of the lease; empty where there is none, and nobody but this process knows the folder."""
        self._run = run
        self._token = token
        self._looked = -math.inf

    def require(self) -> None:
        """LeaseError if the lease is not, or no longer, the one with this token."""
        self._looked = time.monotonic()
        if self._token:
            _require_token(self._run, self._token, folder=None)

    def look(self) -> None:
        """The same, but only where that was not looked at a moment ago."""
        if time.monotonic() - self._looked > LOOK_S:
            self.require()


def _require_token(run: RunFolder, token: str, *, folder: int | None) -> None:
    try:
        found = Holder.read(LEASE if folder is not None else run.path / LEASE, folder=folder)
    except FileNotFoundError:
        found = None
    if found is None or found.token != token:
        now = "nobody holds it now" if found is None else found.words(run)
        raise LeaseError(
            f"the lease on {run.path} was lost to somebody else, so nothing more is written there from here: "
            f"{now}"
        )


@contextlib.contextmanager
def _opened(run: RunFolder) -> Iterator[tuple[int, int]]:
    """The folder and its lock file."""
    folder = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        try:
            yield folder, lock
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _require_gone(run: RunFolder, opened: tuple[int, int], kind: int) -> Holder | None:
    """What one that is gone has left, None if it cannot be read; FileNotFoundError if nothing is left."""
    folder, lock = opened
    locked = _locked(lock, kind)
    try:
        found = Holder.read(LEASE, folder=folder)
        age_s = _age_s(folder, lock)
    except FileNotFoundError:
        if locked is False:
            raise LeaseError(
                f"somebody else is about to write to {run.path}; look again in a moment."
            ) from None
        raise
    if locked is False or not _is_gone(run, folder, found, locked=locked, age_s=age_s):
        raise LeaseError(_held(run, found, age_s))
    return found


def _is_gone(run: RunFolder, folder: int, found: Holder | None, *, locked: bool | None, age_s: float) -> bool:
    """What is not known to be gone is not gone: two that write to one folder destroy the run."""
    if found is not None:
        if found.folder != str(run.path) and found.inode != os.fstat(folder).st_ino:
            return True  # it came with a copy of the folder: its holder writes to the original
        if found.process.is_seen:
            return False
        if found.process.is_here and locked:
            return True
    return age_s > GONE_S


def _held(run: RunFolder, found: Holder | None, age_s: float) -> str:
    if found is None:
        return f"somebody took the lease on {run.path} {age_s:.0f} s ago; look again in {GONE_S:.0f} s."
    words = found.words(run)
    if found.process.is_here:
        return words
    return (
        f"{words}. It has last given a sign of life {max(age_s, 0):.0f} s ago; where it has crashed, it "
        f"counts as gone {GONE_S:.0f} s after the last, and the same call works then."
    )


def _locked(lock: int, kind: int) -> bool | None:
    """Whether the lock is ours now; None where this file system has none."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            return None


def _age_s(folder: int, lock: int) -> float:
    """Seconds since the holder has given a sign of life, by the clock of the file system."""
    os.utime(lock)
    # Opened, because a network file system looks at times anew only then.
    lease = os.open(LEASE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        return os.fstat(lock).st_mtime - os.fstat(lease).st_mtime
    finally:
        os.close(lease)


def _clear_away(run: RunFolder, folder: int, *, gone: Holder | None) -> None:
    """Remove what one has left that is gone; LeaseError if somebody else has taken its place meanwhile."""
    away = f".{LEASE}.{secrets.token_hex(8)}"
    os.rename(LEASE, away, src_dir_fd=folder, dst_dir_fd=folder)
    try:
        if (moved := Holder.read(away, folder=folder)) != gone:
            with contextlib.suppress(FileExistsError):
                os.link(away, LEASE, src_dir_fd=folder, dst_dir_fd=folder)
            raise LeaseError(_held(run, moved, 0.0))
    finally:
        os.unlink(away, dir_fd=folder)


def _write(run: RunFolder, folder: int, place: Mapping[str, str]) -> Holder:
    try:
        descriptor = os.open(LEASE, NEW_FILE, 0o600, dir_fd=folder)
    except FileExistsError:
        raise LeaseError(f"somebody else has just begun to write to {run.path}; look again.") from None
    try:
        with open(descriptor, "w") as stream:
            holder = Holder(
                token=secrets.token_hex(16),
                process=ProcessIdentity.of_this(),
                place=dict(place),
                generation=1 + last_generation(run),
                folder=str(run.path),
                inode=os.fstat(folder).st_ino,
            )
            stream.write(json.dumps(asdict(holder)))
            stream.flush()
            os.fsync(descriptor)
    except BaseException:  # a full disk, or a ledger that cannot be read
        os.unlink(LEASE, dir_fd=folder)
        raise
    return holder
