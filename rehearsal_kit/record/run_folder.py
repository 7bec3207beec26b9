"""The folder that remains of a run: settings, both ledgers, timeline, weights. Private to its owner."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
from pathlib import Path

from rehearsal_kit.base.errors import RunFolderError

LEASE = "lease.json"
"""The file that says who writes to the folder; there only while somebody does."""
LOCK = "lease.lock"
"""The file that is locked meanwhile; it stays."""
TASKS = "tasks"


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

    @property
    def tasks(self) -> Path:
        """Folder of the tensors that were submitted; absent before the first."""
        return self.path / TASKS

    def new_task(self) -> Path:
        """Where the next task of tensors is written; makes its private folder.

        The file is there, and empty: so no two calls, of whatever kernels, get the same.
        """
        folder = self.tasks
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
        moved = self.tasks / path.name
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
        shutil.rmtree(self.tasks, ignore_errors=True)
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
