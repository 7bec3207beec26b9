"""Asks a batch system for a cluster, waits for it in the queue, and connects to it."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.limits import require_number
from rehearsal_kit.base.network_interfaces import interfaces, is_loopback
from rehearsal_kit.batch.job import Job
from rehearsal_kit.batch.system import RUNNING, JobState
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.cluster import Cluster, reach
from rehearsal_kit.cluster.code_folders import offered
from rehearsal_kit.cluster.job_folder import (
    KEPT,
    OVER,
    JobFiles,
    JobOrder,
    JobRecord,
    job_named,
    jobs_folder,
    known_jobs,
)
from rehearsal_kit.cluster.server_process import new_folder
from rehearsal_kit.jobs.job_examination import EXAMINATION
from rehearsal_kit.jobs.script import write_script
from rehearsal_kit.jobs.waiting_line import WaitingLine

ASK_S = 2.0
"""Seconds between two questions to a batch system, which others ask, too."""
LOOK_S = 0.2
SHARED_S = 60.0
"""A job that has run for so long has written into its folder, if it can."""
SILENT_S = 300.0
"""A batch system that has not answered for so long is down."""
LEFT_S = 3600.0
"""No examination takes so long."""
LAST_LINES, LAST_BYTES = 12, 2**16


def launch(job: Job) -> Cluster:
    """Ask the batch system of this machine for a cluster, wait until it is there, and connect to it.

    While the job waits, a line says its state, its place in the queue and when it may start. A keyboard
    interrupt ends the waiting only: the job stays in the queue, `connect_job` waits for it again, and
    `rehearsal-kit launch --cancel` takes it out. `Cluster.close` ends the job.

    job: what to ask for, such as `Job(site="slurm", nodes=2, time="2:00:00", account="physics")`.

    Raises ClusterError where the batch system refuses, and where the job ends before its workers are there,
    with the last lines of its log.
    """
    return connect_job(submit(job).folder.name)


def connect_job(number: str = "", *, timeout_s: float = 86_400.0) -> Cluster:
    """The cluster of a job that was launched, from any process of the same person; waits until it is there.

    number: of the job, or the name of its folder; by default the newest. ClusterError where there is none,
    and where it has ended.
    """
    timeout_s = require_number("timeout_s", timeout_s, low=0.1, high=1e9)
    files = job_named(str(number))
    wait_until_up(files, timeout_s=timeout_s)
    return reach({"folder": str(files.folder)})


def prepare(job: Job) -> JobFiles:
    """The folder of a job: its key, what it is to start, and its script, which nobody has submitted yet."""
    site, files = job.described, JobFiles(folder=jobs_folder() / secrets.token_hex(4))
    order = JobOrder(
        system=site.system,
        kind=job.kind,
        nodes=job.nodes,
        workers=job.workers,
        start=tuple(job.filled(word) for word in site.start),
        numbered_gpus=site.numbered_gpus,
        interface=job.interface or site.interface,
        seen_from=tuple(each.address for each in interfaces() if not is_loopback(each.address)),
        time_s=job.time_s,
        margin_s=job.margin_s,
        goes_on=job.goes_on,
        idle_timeout_s=job.idle_timeout_s,
        code=offered(None),
    )
    record = JobRecord(
        system=site.system,
        site=site.name,
        nodes=job.nodes,
        workers=job.nodes * job.workers,
        made=time.time(),
    )
    with new_folder(files):
        write_private(files.order, json.dumps(asdict(order)))
        write_script(job, files)
        files.write_job(record)
    return files


def submit(job: Job) -> JobFiles:
    """Submit this job; ClusterError, and nothing is left, where the system does not take it."""
    forget_old_jobs()
    files = prepare(job)
    try:
        number = SYSTEMS[job.described.system].submit(files.script)
    except BaseException:
        shutil.rmtree(files.folder, ignore_errors=True)
        raise
    files.write_job(replace(files.read_job(), numbers=(number,)))
    return files


def wait_until_up(
    files: JobFiles, *, timeout_s: float, ask_s: float = ASK_S, shared_s: float = SHARED_S
) -> None:
    """Wait for the cluster of a job, and say meanwhile where the job is.

    ClusterError, with the last lines of its log, where the job has ended, and where nothing of it is seen.
    """
    began = time.monotonic()
    asked = running = answered = None
    with WaitingLine() as line:
        while not _is_up(files):
            if files.failure.exists():
                raise ClusterError(f"the cluster of the job did not come up: {_last_words(files)}")
            now = time.monotonic()
            if asked is None or now - asked >= ask_s:
                asked = now
                try:
                    state = files.state()
                except ClusterError as error:  # a controller that is busy; the job waits all the same
                    line.say(f"job {files.read_job().number}: the batch system does not answer")
                    if now - (answered or began) > SILENT_S:
                        raise ClusterError(f"{error} {_again(files)}") from error
                else:
                    answered = now
                    line.say(f"job {files.read_job().number}: {state}")
                    running = (running or now) if state.phase == RUNNING else None
                    _require_coming(files, state, silent_s=now - (running or now), shared_s=shared_s)
            if now - began > timeout_s:
                raise ClusterGoneError(
                    f"the job is not there after {timeout_s:g} s: {files.state()}. {_again(files)}"
                )
            time.sleep(LOOK_S)


def _is_up(files: JobFiles) -> bool:
    """Whether the cluster is there of the newest job; what was left by one that was killed is none."""
    return files.address.exists() and files.newest_holds()


def _again(files: JobFiles) -> str:
    number = files.read_job().number or files.folder.name
    return f"The job stays where it is; wait for it again by rk.connect_job({number!r})."


def forget_old_jobs() -> None:
    """Remove folders of jobs that have ended, but for the newest, whose logs somebody may want.

    And those that a `doctor --job` has left that was killed.
    """
    ended = [files for files in known_jobs() if not files.key.exists()]
    left = [folder for folder in jobs_folder().glob(f"{EXAMINATION}*") if _age_s(folder) > LEFT_S]
    for folder in [*left, *(files.folder for files in ended[:-KEPT])]:
        shutil.rmtree(folder, ignore_errors=True)


def _age_s(folder: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # its doctor has just ended
        return time.time() - folder.stat().st_mtime
    return 0.0


def _require_coming(files: JobFiles, state: JobState, *, silent_s: float, shared_s: float) -> None:
    if state.phase in OVER:
        raise ClusterError(f"there is no cluster of this job: {state}. {_last_words(files)}")
    if silent_s > shared_s and not files.scheduler.exists():
        raise ClusterError(
            f"the job has been running for {silent_s:.0f} s, and nothing of it is seen in {files.folder}: "
            "the nodes do not share this folder with the login node. Have REHEARSAL_KIT_HOME name a folder "
            "that they share, cancel this job, and launch another."
        )


def _last_words(files: JobFiles) -> str:
    with contextlib.suppress(OSError):
        return files.failure.read_text().strip()
    with contextlib.suppress(OSError):
        with files.log.open("rb") as log:  # which may be huge
            log.seek(max(0, files.log.stat().st_size - LAST_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
        if lines:
            return f"The last lines of {files.log}:\n" + "\n".join(lines)
    return f"It has written no log to {files.log}."
