"""What a batch system can do for us, and how its commands are called: with a deadline, errors in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.batch.job import Job

ANSWER_S = 60.0
"""What a command of a batch system may take: a controller that is busy answers late."""
SCRATCH = "rehearsal-kit-"
"""Beginning of the names of folders for temporary files that our servers make."""
WAITING, RUNNING, ENDED, UNKNOWN = "waiting", "running", "ended", "unknown"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """Where a job is."""

    phase: str
    """waiting, running, ended; unknown where the system does not know it (any more)."""
    words: str
    """What the system itself says of it."""

    def __str__(self) -> str:
        return f"{self.phase} ({self.words})" if self.words else self.phase


class BatchSystem(Protocol):
    """Slurm or PBS."""

    prefix: str
    """How a line of options begins in a job script."""

    def directives(self, job: Job, *, log: Path) -> list[str]:
        """The options of this job, one a line; log: where all that the job says is to go."""

    def submit(self, script: Path, *, after: str = "", answer_s: float = ANSWER_S) -> str:
        """Submit a job script; the number of the job. after: the job whose end it waits for.

        answer_s: what the system may take.

        ClusterError, with what the system says, where it does not take it.
        """

    def state(self, number: str) -> JobState:
        """Where this job is; ClusterError where the system does not answer."""

    def cancel(self, number: str) -> None:
        """End this job, or take it out of the queue; ClusterError where the system refuses."""

    def here(self) -> str:
        """The number of the job inside which this process runs; empty outside of one."""


def called(
    command: Sequence[str], *, lacking: str, answer_s: float = ANSWER_S
) -> subprocess.CompletedProcess[str]:
    """A command of a batch system that has ended, well or not.

    lacking: what to say where it is not installed. ClusterError then, and where it does not answer in time.
    """
    program = shutil.which(command[0])
    if program is None:
        raise ClusterError(lacking)
    try:
        return subprocess.run(  # noqa: S603 - a program of the site, with words that were checked
            [program, *command[1:]],
            capture_output=True,
            text=True,
            timeout=answer_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env=variables_of_a_job(os.environ) | {"LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"`{' '.join(command)}` has not answered in {answer_s:g} s: the batch system is busy or down; "
            "try again later."
        ) from error
    except OSError as error:
        raise ClusterError(f"`{command[0]}` cannot be run: {error}.") from error


def variables_of_a_job(environ: Mapping[str, str]) -> dict[str, str]:
    """These variables, as a job may have them: a temporary folder of ours goes with the process it is of."""
    ours = os.path.basename(environ.get("TMPDIR", "")).startswith(SCRATCH)
    return {name: value for name, value in environ.items() if not (ours and name == "TMPDIR")}


def refused(
    command: str, done: subprocess.CompletedProcess[str], *, hints: Sequence[tuple[str, str]] = ()
) -> ClusterError:
    """The error of a command that has ended badly: its own last words, and what may help.

    hints: a word of a refusal, and what helps then; the first that fits is told.
    """
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split()) or "it gave no reason"
    hint = next((f"; {hint}" for word, hint in hints if word in done.stderr.lower()), "")
    return ClusterError(f"`{command}` was refused: {said}{hint}.")
