"""Looks at the allocation inside which this process runs: one program on every node, and what they tell."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rehearsal_kit.base.checked_values import record_of
from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.batch.site import filled, read_site
from rehearsal_kit.cluster.job_folder import jobs_folder
from rehearsal_kit.cluster.server_process import PROGRAM
from rehearsal_kit.jobs.node_report import NodeReport

TIMEOUT_S = 300.0
LAST_LINES = 6
EXAMINATION = "examination-"
"""Beginning of the names of folders in which nodes tell what they find."""


def examine_job(site: str | Path | None, *, interface: str) -> list[NodeReport]:
    """What the nodes of this job tell, in order of their names.

    site: None for what the batch system of the job is called. ClusterError outside of a job, and where
    nothing can be started on its nodes.
    """
    system, nodes = allocation(os.environ)
    described = read_site(system if site is None else site)
    folder = jobs_folder() / f"{EXAMINATION}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    start = [filled(word, nodes=nodes, cpus=1, gpus=described.gpus_per_node) for word in described.start]
    program = [sys.executable, "-c", PROGRAM.format(module="jobs.node_report")]
    words = [*start, *program, str(folder), str(nodes), interface or described.interface]
    try:
        write_private(folder / "nonce", secrets.token_hex(16))
        try:
            done = subprocess.run(  # noqa: S603 - the command of the site, and our own module
                words,
                env=child_environment(os.environ),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClusterError(
                f"nothing can be started on the nodes by `{' '.join(start)}`: {error}."
            ) from error
        found = [_read(path) for path in sorted(folder.glob("*.json"))]
        if not found:
            last = done.stderr.strip().splitlines()[-LAST_LINES:]
            raise ClusterError(
                f"no node has told anything; `{' '.join(start)}` has said:\n" + "\n".join(last)
            )
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def allocation(environ: Mapping[str, str]) -> tuple[str, int]:
    """The batch system of the job inside which this process runs, and how many nodes it has; ClusterError."""
    if "SLURM_JOB_ID" in environ:
        return "slurm", int(re.sub(r"\D", "", environ.get("SLURM_JOB_NUM_NODES", "")) or "1")
    if "PBS_JOBID" in environ:
        hosts: Sequence[str] = ("",)
        with contextlib.suppress(OSError):
            hosts = Path(environ.get("PBS_NODEFILE", "")).read_text().split()
        return "pbs", len(set(hosts))
    raise ClusterError(
        "this is no job of Slurm or PBS. Begin one, as by `salloc --nodes=2` or `qsub -I -l select=2`, and "
        "type `rehearsal-kit doctor --job` in it."
    )


def _read(path: Path) -> NodeReport:
    report: NodeReport = record_of(NodeReport, json.loads(path.read_text()))
    return report
