"""`rehearsal-kit launch`: a cluster in a batch job, asked for from the login node of an HPC system."""

from __future__ import annotations

import argparse
import getpass
import shlex
import socket
import sys
from dataclasses import fields
from typing import Any

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.batch.job import Job
from rehearsal_kit.batch.site import known_sites
from rehearsal_kit.cluster.job_folder import JobFiles, job_named
from rehearsal_kit.jobs.launch import prepare, submit, wait_until_up

INTERRUPTED = 130
OPTIONS = (
    ("nodes", int, "N", "nodes (1)"),
    ("workers_per_node", int, "K", "workers of each node (one per GPU; one on CPUs)"),
    ("time", str, "T", "wall time: minutes, or hours:minutes:seconds (1:00:00)"),
    ("gpus", int, "G", "GPUs of each node that are used; 0: CPUs (all that the site says its nodes have)"),
    ("account", str, "NAME", "who pays"),
    ("queue", str, "NAME", "queue, or partition"),
    ("name", str, "NAME", "of the job (rehearsal-kit)"),
    ("interface", str, "NAME", "network interface of the nodes (the one that leads to this machine)"),
    ("margin_s", float, "S", "seconds before the end for the last checkpoint (120)"),
    ("idle_timeout_s", float, "S", "end after so long without a kernel or a running rank (3600)"),
)
"""Those that are handed on as they are: name of the setting, type, word and help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--slurm", dest="site", action="store_const", const="slurm", help="any Slurm")
    which.add_argument("--pbs", dest="site", action="store_const", const="pbs", help="any PBS")
    sites = ", ".join(known_sites())
    which.add_argument("--site", metavar="NAME|FILE.toml", help=f"a machine: {sites}, or a file of yours")
    for name, kind, word, text in OPTIONS:
        parser.add_argument(f"--{name.removesuffix('_s').replace('_', '-')}", dest=name, type=kind,
                            metavar=word, help=text)  # fmt: skip
    parser.add_argument(
        "--option",
        dest="options",
        action="append",
        metavar="TEXT",
        help="of the batch system itself, as --option=--mem=64G; may be given several times",
    )
    parser.add_argument(
        "--continue",
        dest="goes_on",
        action="store_true",
        default=None,
        help="have another job follow when the time is over, which resumes the run",
    )
    parser.add_argument(
        "--print", action="store_true", help="write the job script and show it, submit nothing"
    )
    parser.add_argument("--wait", action="store_true", help="wait until the cluster is there")
    parser.add_argument("--cancel", metavar="NUMBER", help="end this job, or take it out of the queue")
    parser.set_defaults(command=_launch)


def _launch(chosen: argparse.Namespace) -> int:
    if chosen.cancel is not None:
        if not chosen.cancel:
            raise SettingsError("which job? `rehearsal-kit jobs` lists their numbers.")
        print(job_named(chosen.cancel).cancel())
        return 0
    if chosen.site is None:
        raise SettingsError("which batch system? Give --slurm, --pbs, or --site with the name of a machine.")
    given: dict[str, Any] = {each.name: getattr(chosen, each.name) for each in fields(Job)}
    settings = {name: value for name, value in given.items() if value is not None}
    job = Job(**{**settings, "options": tuple(settings.get("options", ()))})
    if chosen.print:
        files = prepare(job)
        print(files.script.read_text(), end="")
        print(f"# Submit it by: {submit_words(job)} {shlex.quote(str(files.script))}")
        print(f"# and then, in a notebook: cluster = rk.connect_job({files.folder.name!r})")
        return 0
    files = submit(job)
    for line in told(job, files):
        print(line, flush=True)
    if chosen.wait:
        try:
            wait_until_up(files, timeout_s=job.time_s + 30 * 86_400)
        except KeyboardInterrupt:
            print(f"not waited for any longer; the job stays: {files.end_command} ends it.", file=sys.stderr)
            return INTERRUPTED
        print("the cluster is there.")
    return 0


def submit_words(job: Job) -> str:
    """The command that submits a script of this job."""
    return {"slurm": "sbatch", "pbs": "qsub"}[job.described.system]


def told(job: Job, files: JobFiles) -> list[str]:
    """What a person needs who has launched a job."""
    number, note = files.read_job().number, job.described.note
    here = f"{getpass.getuser()}@{socket.getfqdn()}"
    return [
        f"job {number}: {job.nodes} x {job.workers} workers on {job.kind}, for {job.time}"
        f"{'; another one follows it' if job.goes_on else ''}",
        *([f"site        {note}"] if note else []),
        f"log         {files.log}",
        "state       rehearsal-kit jobs",
        f"in a notebook on this machine:    cluster = rk.connect_job({number!r})",
        f"notebooks here, seen from yours:  ssh -L 8888:127.0.0.1:8888 {here}, "
        "and in it: rehearsal-kit lab --no-browser --jupyter=--port=8888",
        f"to end it   rehearsal-kit launch --cancel {number}",
    ]
