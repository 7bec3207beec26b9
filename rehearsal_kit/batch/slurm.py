"""Slurm: its options, sbatch, squeue and scancel."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.batch.job import Job, clock
from rehearsal_kit.batch.system import ANSWER_S, ENDED, RUNNING, UNKNOWN, WAITING, JobState, called, refused

LACKING = (
    "there is no `sbatch` here, so this is no login node of a Slurm cluster: type this on one (load its "
    "module first, if the site has one). On a machine of your own use rk.start_cluster()."
)
HINTS = (
    ("account", "your accounts: `sacctmgr -nP show assoc user=$USER format=account`; give --account"),
    ("partition", "the queues there are: `sinfo -s`; give --queue"),
    ("time limit", "what a queue allows: `sinfo -o '%P %l'`; give --time"),
    ("node configuration", "what nodes have: `sinfo -o '%P %D %c %G %m'`; ask for less of it"),
    ("processors", "what nodes have: `sinfo -o '%P %D %c %G %m'`; ask for less of it"),
    ("node count", "how many there are: `sinfo -s`; give --nodes"),
    ("contact", "Slurm's controller does not answer; try again later"),
)
"""What helps where Slurm's refusal has such a word in it."""
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED")
RUNS = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING")


class Slurm:
    """Slurm's commands."""

    prefix = "#SBATCH"

    def directives(self, job: Job, *, log: Path) -> list[str]:
        """The options of this job, one a line."""
        named = {"account": job.account, "partition": job.queue}
        return [
            f"--job-name={job.name}",
            f"--nodes={job.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={job.workers}",
            f"--time={clock(job.time_s)}",
            f"--output={quoted(str(log).replace('%', '%%'))}",
            "--open-mode=append",
            f"--chdir={quoted(str(log.parent))}",
            # To the script alone, which is our process: it has the ranks write their last checkpoint.
            f"--signal=B:USR1@{math.ceil(job.margin_s)}",
            # We follow a job by one of our own; Slurm would begin this one again from its first line.
            "--no-requeue",
            # A node that is lost takes its own workers with it, and not the job.
            "--no-kill",
            *[f"--{option}={value}" for option, value in named.items() if value],
        ]

    def submit(self, script: Path, *, after: str = "", answer_s: float = ANSWER_S) -> str:
        """Submit a job script; the number of the job."""
        follows = [f"--dependency=afterany:{after}"] if after else []
        done = called(["sbatch", "--parsable", *follows, str(script)], lacking=LACKING, answer_s=answer_s)
        found = re.match(r"(\d+)(?:;|\s|$)", done.stdout)
        if done.returncode or not found:
            raise refused("sbatch", done, hints=HINTS)
        return found[1]

    def state(self, number: str) -> JobState:
        """Where this job is."""
        asked = ["squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T|%r|%S|%P"]
        done = called(asked, lacking=LACKING)
        if done.returncode or not done.stdout.strip():
            if done.returncode and "invalid job id" not in done.stderr.lower():
                raise refused("squeue", done)
            return JobState(phase=UNKNOWN, words="Slurm has forgotten it: it ended a while ago")
        name, reason, start, partition = [*done.stdout.splitlines()[0].split("|"), "", "", ""][:4]
        if name in WAITS:
            words = [name.lower(), "" if reason == "None" else reason, self._ahead(number, partition)]
            words += [f"expected to start {start}"] if start not in ("", "N/A") else []
            return JobState(phase=WAITING, words=", ".join(filter(None, words)))
        if name in RUNS:
            return JobState(phase=RUNNING, words="" if name == "RUNNING" else name.lower())
        return JobState(phase=ENDED, words=name.lower())

    def cancel(self, number: str) -> None:
        """End this job, or take it out of the queue."""
        done = called(["scancel", number], lacking=LACKING)
        if done.returncode:
            raise refused("scancel", done)

    def here(self) -> str:
        """The number of the job inside which this process runs; empty outside of one."""
        return os.environ.get("SLURM_JOB_ID", "")

    def _ahead(self, number: str, partition: str) -> str:
        """How many jobs wait before this one in its queue; empty where Slurm does not say."""
        asked = ["squeue", "--noheader", "--states=PENDING", f"--partition={partition}", "--sort=-p,i"]
        try:
            done = called([*asked, "--format=%A"], lacking=LACKING)
        except ClusterError:  # a number that is only nice to know
            return ""
        waiting = done.stdout.split()
        return f"{waiting.index(number)} before it" if number in waiting else ""


def quoted(text: str) -> str:
    """A value in a line of options, whatever characters it has."""
    return text if re.fullmatch(r"[\w./%+:=@,~-]+", text) else '"' + text.replace('"', '\\"') + '"'
