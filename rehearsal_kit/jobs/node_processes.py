"""The processes that the server of a job starts: one on every node, and one that resumes a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from rehearsal_kit.batch.system import variables_of_a_job
from rehearsal_kit.cluster.job_folder import JobOrder
from rehearsal_kit.cluster.server_process import PROGRAM

END_S = 20.0
"""What the nodes have to end once the scheduler is gone."""
FAILURE = "failed-"
"""Beginning of the names of files in which nodes say why they ended."""


class NodeProcesses:
    """Starts them, knows whether they go on, and ends them."""

    def __init__(self, order: JobOrder, folder: Path) -> None:
        self._order, self._folder = order, folder
        self._step: subprocess.Popen[bytes] | None = None
        self._resumer: subprocess.Popen[bytes] | None = None

    @property
    def going(self) -> bool:
        """Whether any of the nodes' processes is still there, as far as the batch system says."""
        return self._step is not None and self._step.poll() is None

    def start(self) -> None:
        """One process on every node of the job, by the command of the site."""
        for left in self._folder.glob(f"{FAILURE}*"):
            left.unlink(missing_ok=True)
        self._step = self._started([*self._order.start, *self._program("node_workers")])

    def resume(self, run: str) -> None:
        """Have the run in this folder go on, by a process of its own: a session needs torch."""
        self._resumer = self._started([*self._program("resumer"), run])

    @property
    def resumer_failed(self) -> bool:
        """Whether the run that was to be resumed was not."""
        return self._resumer is not None and self._resumer.poll() not in (None, 0)

    def last_words(self) -> str:
        """Why nodes have ended, as they say it; empty if they do not."""
        said = []
        for path in sorted(self._folder.glob(f"{FAILURE}*")):
            with contextlib.suppress(OSError):
                said.append(f"{path.name.removeprefix(FAILURE)}: {path.read_text().strip()}")
        return "".join(f"\n{words}" for words in said)

    def end(self) -> None:
        """Wait for them, and end those that do not end by themselves."""
        for process in filter(None, (self._resumer, self._step)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S if process is self._step else 1.0)
            for end in (process.terminate, process.kill):
                if process.poll() is None:
                    end()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(END_S)

    def _program(self, module: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM.format(module=f"jobs.{module}"), str(self._folder)]

    def _started(self, words: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - the command of the site, and our own modules
            words, cwd=self._folder, env=variables_of_a_job(os.environ), stdin=subprocess.DEVNULL
        )
