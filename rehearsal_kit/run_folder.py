"""The folder that remains of a run: settings, both ledgers, timeline, weights. Private to its owner."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rehearsal_kit.errors import RunFolderError

LEASE = "lease.json"
"""The file that says who writes to the folder; there only while somebody does."""
LOCK = "lease.lock"
"""The file that is locked meanwhile; it stays."""
TASKS = "tasks"

BLOCK = 2**20
"""Bytes of a ledger that are looked at at once."""


class RunFolder:
    """Paths and careful writing; whoever holds the lease on it decides what is written.

    The path is canonical: another spelling, or a link, is the same run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().resolve()

    @property
    def settings(self) -> Path:
        """All settings, the seed and versions, as JSON."""
        return self.path / "settings.json"

    @property
    def wishes(self) -> Path:
        """Ledger of what the kernel asked for; one JSON object a line."""
        return self.path / "wishes.jsonl"

    @property
    def effects(self) -> Path:
        """Ledger of what took effect and before which step; written by rank 0."""
        return self.path / "effects.jsonl"

    @property
    def timeline(self) -> Path:
        """Every record of rank 0 and the acknowledgements of all ranks it knows of."""
        return self.path / "timeline.jsonl"

    @property
    def previews(self) -> Path:
        """A folder of HDF5 files, one for each task trained: held-out patterns as predicted then."""
        return self.path / "previews"

    @property
    def initial_weights(self) -> Path:
        """safetensors: the weights before step 0."""
        return self.path / "initial.safetensors"

    @property
    def weights(self) -> Path:
        """safetensors: the weights after the last task that ended, or at the end of the run."""
        return self.path / "weights.safetensors"

    @property
    def inputs(self) -> Path:
        """What the network takes, and the fitted preparation, as JSON; from the first task on."""
        return self.path / "inputs.json"

    def new_task(self) -> Path:
        """Where the next task of tensors is written; makes its private folder.

        The file is there, and empty: so no two calls, of whatever kernels, get the same.
        """
        folder = self.path / TASKS
        folder.mkdir(mode=0o700, exist_ok=True)
        known = [int(path.stem) for path in folder.glob("*.h5") if path.stem.isdecimal()]
        for number in itertools.count(1 + max(known, default=-1)):
            with contextlib.suppress(FileExistsError):
                path = folder / f"{number:04d}.h5"
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                break
        return path

    def inside(self, path: str | Path) -> str:
        """How a file is called in what is written down: one below this folder by its place in there.

        So a run folder can be moved. `find` takes it back. A relative path is called so already: nothing
        here is relative to the current folder, which every process has another.
        """
        whole = Path(path)
        named = whole.parent.resolve() / whole.name
        below = whole.is_absolute() and named.is_relative_to(self.path)
        return str(named.relative_to(self.path) if below else whole)

    def find(self, written: str) -> str:
        """The file that was written down like this.

        Earlier versions wrote down the whole path of tasks of tensors; where such a file is gone because the
        folder was moved, it is the one of that name in this folder.
        """
        path = self.path / written
        moved = self.path / TASKS / path.name
        return str(moved if path.parent.name == TASKS and not path.exists() and moved.exists() else path)

    @property
    def generations(self) -> Path:
        """Ledger of the coordinator: which ranks were started when and why, and how the run ended."""
        return self.path / "generations.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint, named by its number."""
        return self.path / "checkpoints"

    @property
    def cluster(self) -> Path:
        """Where the cluster is on which the run was started last, as JSON."""
        return self.path / "cluster.json"

    def rendezvous(self, generation: int) -> Path:
        """Where the ranks of a generation meet; exists only while they do."""
        return self.path / f"rendezvous-{generation}"

    def create(self) -> RunFolder:
        """Make the folder, readable by its owner only; one that exists and is not empty is refused.

        Of two calls at once exactly one makes it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise FileExistsError
            os.close(os.open(self.path / LOCK, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self.path.chmod(0o700)
        except FileExistsError:
            raise RunFolderError(self._words_of_existing()) from None
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path} cannot be made: {error}. Choose a place you may write to."
            ) from error
        self.require_private()
        return self

    def _words_of_existing(self) -> str:
        if not self.settings.exists():
            return (
                f"run folder {self.path} exists and is not empty; choose another name, a run is never "
                "written over."
            )
        path = str(self.path)
        return (
            f"{path} holds a run already, and a run is never written over. To go on with it: "
            f"rk.attach({path!r}) while its cluster lives, rk.resume({path!r}, cluster) once that is gone. "
            "For a new run choose another name."
        )

    def clear_leftovers(self) -> None:
        """Remove what processes have left that died while they wrote; nobody else may write meanwhile."""
        partial = [folder.glob(".*.partial") for folder in (self.path, self.previews)]
        for left in (*itertools.chain(*partial), *self.path.glob("rendezvous-*")):
            with contextlib.suppress(OSError):  # it lies there a while longer; no reason to end a run
                left.unlink()

    def remove_rendezvous(self, generation: int) -> None:
        """Where its ranks met is of no use any more."""
        with contextlib.suppress(OSError):  # its number does not come again, so it is in nobody's way
            self.rendezvous(generation).unlink()

    def discard(self) -> None:
        """Remove what was written of a run that was never started; the folder, too, if it is empty then."""
        for path in (self.settings, self.initial_weights, self.wishes, self.path / LOCK):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / TASKS, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def require_private(self) -> None:
        """Refuse a folder that is not ours or that others may write to (as ssh does with keys)."""
        status = self.path.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise RunFolderError(
                f"run folder {self.path} belongs to user {status.st_uid} with mode "
                f"{stat.S_IMODE(status.st_mode):o}; it must be yours and not writable by others: chmod 700."
            )


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file of mode 0600 in one go: the whole content is there or what was there before is."""
    with written_whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A private file to write instead of `path`; it takes its place once the block has ended well."""
    # No number of a process: it may be that of one that died here, and two threads have the same.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Ledger:
    """An append-only file of JSON lines; what `append` returned from is on disk, whole.

    A torn last line, which a writer left that was killed, is cut off first.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        self._lines, self._end = _whole_lines(self._file)
        os.ftruncate(self._file, self._end)
        self._durable = durable

    def append(self, entry: Mapping[str, Any]) -> int:
        """Add one line; with `durable`, wait until the disk has it. Returns its number, from 0.

        OSError where it cannot be written; nothing of it stays then, so that the next one is whole.
        """
        line = memoryview(json.dumps(entry, allow_nan=False).encode() + b"\n")
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            if self._durable:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += written
        self._lines += 1
        return self._lines - 1

    def close(self) -> None:
        """Close the file; nothing can be appended after."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _whole_lines(file: int) -> tuple[int, int]:
    """How many whole lines a file has, and where the last of them ends; read in blocks."""
    lines = end = place = 0
    while block := os.pread(file, BLOCK, place):
        lines += block.count(b"\n")
        end = place + block.rfind(b"\n") + 1 if b"\n" in block else end
        place += len(block)
    return lines, end


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a ledger; a torn last line is ignored.

    RunFolderError if any other line is damaged: what a run has decided must not be guessed.
    """
    entries, damaged = _lines(path)
    if damaged:
        number, why = damaged[0]
        raise RunFolderError(
            f"line {number} of {path} is damaged: {why}. Put back a copy of the file; or give up that line "
            "and all after it, so that the run goes on from its newest checkpoint before it: "
            f"sed -i '{number},$d' {shlex.quote(str(path))}"
        )
    return entries


def last_generation(run: RunFolder) -> int:
    """Number of the newest set of ranks started for a run; 0 if none was. Damaged lines do not count."""
    numbers = (entry.get("generation", 0) for entry in _lines(run.generations)[0])
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _lines(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    if not path.exists():
        return [], []
    entries: list[dict[str, Any]] = []
    damaged: list[tuple[int, str]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
        except ValueError as error:  # also bytes that are no text
            damaged.append((number, str(error)))
            continue
        if isinstance(entry, dict):
            entries.append(entry)
        else:
            damaged.append((number, f"it is {line[:40]!r}, not an object"))
    return entries, damaged
