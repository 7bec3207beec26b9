"""The private folder of a job: what it is to start, its key, its script, its log, and what became of it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.cluster.key_files import require_private_folder
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.cluster.server_process import home_folder

T = TypeVar("T")
KEPT = 20
"""Folders of ended jobs that are kept, for their logs."""


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """What a job starts in its allocation."""

    system: str
    kind: str
    """cpu or cuda."""
    nodes: int
    workers: int
    """Workers of every node."""
    start: tuple[str, ...]
    """The command that starts one process on every node."""
    numbered_gpus: bool
    interface: str
    """Name of the network interface; empty: the one that leads to the login node."""
    seen_from: tuple[str, ...]
    """Addresses of the login node."""
    time_s: float
    """Wall time that was asked for."""
    margin_s: float
    """Seconds before its end in which runs take their last checkpoint."""
    goes_on: bool
    """Whether another job goes on with the run when the time of this one is over."""
    idle_timeout_s: float
    code: tuple[str, ...] = ()
    """Folders from which the kernel imports, and the workers may."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """Which job this is, for those who look for it later."""

    system: str
    site: str
    numbers: tuple[str, ...] = ()
    """Numbers of the jobs, one after the other; empty before the first was submitted."""
    nodes: int = 1
    workers: int = 1
    """Workers of all nodes together."""
    made: float = 0.0
    """When, in seconds since the epoch."""

    @property
    def number(self) -> str:
        """Number of the newest job; empty if none was submitted."""
        return self.numbers[-1] if self.numbers else ""


@dataclass(frozen=True, kw_only=True)
class JobFiles(ClusterFiles):
    """The folder of a cluster that a job holds: one of the person's own, which all nodes see."""

    @property
    def script(self) -> Path:
        """The job script."""
        return self.folder / "job.sh"

    @property
    def job(self) -> Path:
        """Its `JobRecord`."""
        return self.folder / "job.json"

    @property
    def scheduler(self) -> Path:
        """Where the scheduler is, for the workers of the nodes, as Dask writes it; gone when it is."""
        return self.folder / "scheduler.json"

    def read_order(self) -> JobOrder:
        """ClusterError where there is none, or none that can be read."""
        return self._read(JobOrder, self.order)

    def read_job(self) -> JobRecord:
        """ClusterError where there is none, or none that can be read."""
        return self._read(JobRecord, self.job)

    def write_job(self, record: JobRecord) -> None:
        """Write this record in the place of what was there."""
        write_private(self.job, json.dumps(asdict(record)))

    def _read(self, kind: type[T], path: Path) -> T:
        try:
            record: T = record_of(kind, json.loads(path.read_text()))
            return record
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"{self.folder} is not the folder of a job of ours: {error}.") from error


def jobs_folder() -> Path:
    """Where the folders of jobs lie; made if it is not there, ClusterError if others can look."""
    folder = home_folder() / "jobs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private_folder(folder)
    return folder


def known_jobs() -> list[JobFiles]:
    """The jobs of this person, the newest last."""
    found = []
    for path in jobs_folder().iterdir():
        files = JobFiles(folder=path)
        with contextlib.suppress(ClusterError):  # it is being made, or was left by a crash
            found.append((files.read_job().made, path.name, files))
    return [files for _, _, files in sorted(found, key=lambda each: each[:2])]


def job_named(name: str) -> JobFiles:
    """The job with this number, or whose folder has this name; empty: the newest. ClusterError if none is."""
    jobs = known_jobs()
    for files in reversed(jobs):
        if name in ("", files.folder.name, str(files.folder), *files.read_job().numbers):
            return files
    there = ", ".join(files.read_job().number or files.folder.name for files in jobs) or "none"
    raise ClusterError(f"no job {name!r} of yours is known here; there are: {there}. `rehearsal-kit jobs`.")
