"""PBS (OpenPBS, PBS Pro): its options, qsub, qstat and qdel."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.batch.job import Job, clock
from rehearsal_kit.batch.system import ANSWER_S, ENDED, RUNNING, UNKNOWN, WAITING, JobState, called, refused

LACKING = (
    "there is no `qsub` here, so this is no login node of a PBS cluster: type this on one (load its module "
    "first, if the site has one). On a machine of your own use rk.start_cluster()."
)
HINTS = (
    ("account", "give --account, the project that pays"),
    ("project", "give --account, the project that pays"),
    ("queue", "the queues there are: `qstat -Q`; give --queue"),
    ("walltime", "what a queue allows: `qstat -Qf QUEUE`; give --time"),
    ("resource", "some sites ask for more, such as --option='-l filesystems=home'"),
    ("connect", "the PBS server does not answer; try again later"),
)
"""What helps where PBS's refusal has such a word in it."""
PHASES = dict.fromkeys("QHWTSUM", WAITING) | dict.fromkeys("REB", RUNNING) | dict.fromkeys("FX", ENDED)
"""Where a job is, by the letter of its state."""


class Pbs:
    """PBS's commands."""

    prefix = "#PBS"

    def directives(self, job: Job, *, log: Path) -> list[str]:
        """The options of this job, one a line; nodes are asked for in those of the site."""
        if any(character.isspace() for character in str(log)):  # where it ends, the next option would begin
            raise ClusterError(
                f"the log of the job would be {log}, and PBS takes no path with a space in it; have "
                "REHEARSAL_KIT_HOME name a folder without one that the nodes share with this machine."
            )
        named = {"-A": job.account, "-q": job.queue}
        return [
            f"-N {job.name}",
            f"-l walltime={clock(job.time_s)}",
            "-j oe",
            f"-o {log}",
            # One of our own follows this job; PBS would begin this one again from its first line.
            "-r n",
            *[f"{option} {value}" for option, value in named.items() if value],
        ]

    def submit(self, script: Path, *, after: str = "", answer_s: float = ANSWER_S) -> str:
        """Submit a job script; the number of the job."""
        follows = ["-W", f"depend=afterany:{after}"] if after else []
        done = called(["qsub", *follows, str(script)], lacking=LACKING, answer_s=answer_s)
        # Some sites say a line of their own before it.
        found = re.findall(r"^\d+[\w.\[\]-]*$", done.stdout, re.MULTILINE)
        if done.returncode or not found:
            raise refused("qsub", done, hints=HINTS)
        return str(found[-1])

    def state(self, number: str) -> JobState:
        """Where this job is."""
        done = called(["qstat", "-x", "-f", "-F", "json", number], lacking=LACKING)
        try:
            jobs = json.loads(done.stdout)["Jobs"]
            (job,) = jobs.values()
            letter, comment = str(job["job_state"]), str(job.get("comment", ""))
            start = str(job.get("estimated", {}).get("start_time", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if "unknown job" in done.stderr.lower():
                return JobState(phase=UNKNOWN, words="PBS has forgotten it: it ended a while ago")
            raise refused("qstat", done) from error
        words = [comment, f"expected to start {start}" if start and letter != "R" else ""]
        return JobState(phase=PHASES.get(letter, UNKNOWN), words=", ".join(filter(None, words)) or letter)

    def cancel(self, number: str) -> None:
        """End this job, or take it out of the queue."""
        done = called(["qdel", number], lacking=LACKING)
        if done.returncode:
            raise refused("qdel", done)

    def here(self) -> str:
        """The number of the job inside which this process runs; empty outside of one."""
        return os.environ.get("PBS_JOBID", "")
