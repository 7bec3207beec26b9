"""The private folder of a job: what it is to start, its key, its script, its log, and what became of it."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.network_interfaces import Interface, interface_named, interface_towards
from rehearsal_kit.batch.system import ENDED, UNKNOWN, JobState
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.key_files import require_private_folder
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.cluster.server_process import home_folder

T = TypeVar("T")
WRITTEN = "written"
OVER = (ENDED, UNKNOWN)
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

    def interface_here(self, hosts: Sequence[str]) -> Interface:
        """The interface of this machine that was named, or else that leads to one of these hosts."""
        return interface_named(self.interface) if self.interface else interface_towards(hosts)


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
    def end_command(self) -> str:
        """What a person types to end it."""
        return f"rehearsal-kit launch --cancel {self.read_job().number or self.folder.name}"

    @property
    def another(self) -> str:
        """What a person types to get another one of the kind."""
        return "rk.launch(rk.Job(...))"

    def state(self) -> JobState:
        """Where the newest job is; ClusterError where the batch system does not answer.

        Of one that has ended nothing is left but its log and its record.
        """
        record = self.read_job()
        if not record.number:
            return JobState(phase=WRITTEN, words=f"submit it by hand: {shlex.quote(str(self.script))}")
        found = SYSTEMS[record.system].state(record.number)
        if found.phase in OVER:
            self.clear()
        return found

    def ended(self) -> str:
        """That its newest job has ended, in words; empty if it has not, or the batch system does not say."""
        with contextlib.suppress(ClusterError):
            state = self.state()
            if state.phase in OVER:
                return f"job {self.read_job().number} has {state}"
        return ""

    def clear(self) -> None:
        """Remove the key of an ended job, and all that says where its cluster was."""
        for path in (self.key, self.address, self.scheduler, self.going_on, self.taken):
            path.unlink(missing_ok=True)

    def newest_holds(self) -> bool:
        """Whether the cluster whose address is here is that of the newest job."""
        with contextlib.suppress(OSError):
            return self.taken.read_text() == self.read_job().number
        return False

    def cancel(self) -> str:
        """End its newest job, or take it out of the queue; says in words what was done."""
        record, was_up = self.read_job(), self.address.exists()
        if not record.number:
            shutil.rmtree(self.folder, ignore_errors=True)
            return (
                f"{self.folder.name}: it was never submitted by us; removed its folder, so that it cannot "
                "start any more."
            )
        state = self.state()
        if state.phase in OVER:
            return f"{record.number}: {state}; there is nothing to cancel."
        SYSTEMS[record.system].cancel(record.number)
        self.going_on.unlink(missing_ok=True)
        write_private(self.failure, f"job {record.number} was cancelled.\n")
        if not was_up:
            return f"{record.number}: cancelled before its cluster was there. Log: {self.log}"
        return (
            f"{record.number}: cancelled; a run that was going takes a last checkpoint, and rk.resume() goes "
            f"on with it. Log: {self.log}"
        )

    @property
    def taken(self) -> Path:
        """The number of the job that holds a cluster here, or is about to."""
        return self.folder / "taken"

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


def files_of(folder: Path) -> ClusterFiles:
    """The files of the cluster whose private folder this is."""
    files = JobFiles(folder=folder)
    return files if files.job.exists() else ClusterFiles(folder=folder)


def job_named(name: str) -> JobFiles:
    """The job with this number, or whose folder has this name; "" for the newest. ClusterError."""
    jobs = known_jobs()
    for files in reversed(jobs):
        if name in ("", files.folder.name, str(files.folder), *files.read_job().numbers):
            return files
    there = ", ".join(files.read_job().number or files.folder.name for files in jobs) or "none"
    raise ClusterError(f"no job {name!r} of yours is known here; there are: {there}. `rehearsal-kit jobs`.")
