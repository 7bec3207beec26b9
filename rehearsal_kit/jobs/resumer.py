"""What goes on with a run in the job that follows, without a kernel."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rehearsal_kit.base.errors import LeaseError, RehearsalKitError, SessionError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.cluster.cluster import Cluster, reach
from rehearsal_kit.cluster.job_folder import JobFiles
from rehearsal_kit.session.attach import resume
from rehearsal_kit.session.session import Session

BEGIN_S = 300.0
"""What the ranks may take to begin, with buffers of any size to read."""

LEASE_S = 90.0
"""What a lease counts that was left on another machine, and some more."""


def main() -> None:
    """The whole process; its arguments are the folder of the job and that of the run."""
    folder, run = sys.argv[1:3]
    files = JobFiles(folder=Path(folder))
    try:
        cluster = reach({"folder": folder})
        session = _resumed(run, cluster)
        deadline = time.monotonic() + BEGIN_S
        while session.state in ("created", "starting") and time.monotonic() < deadline:
            time.sleep(0.1)
        if session.state in ("failed", "starting"):
            raise SessionError(f"it is {session.state}. {session.error}")
        files.going_on.unlink(missing_ok=True)  # from now on it is known by its own folder
        session.leave()
        cluster.disconnect()
    except RehearsalKitError as error:
        words = (
            f"{run} was not resumed by itself: {error} Where its network or strategy is your own, give it: "
            "rk.resume(run, rk.connect_job(), network=..., strategy=...)."
        )
        write_private(files.failure, f"{words}\n")  # whoever waits for the run hears of it there
        files.going_on.unlink(missing_ok=True)
        sys.exit(f"rehearsal-kit: {words}")


def _resumed(run: str, cluster: Cluster) -> Session:
    """The run, begun again; a lease that a killed job has left counts for a while."""
    deadline = time.monotonic() + LEASE_S
    while True:
        try:
            return resume(run, cluster)
        except LeaseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)
