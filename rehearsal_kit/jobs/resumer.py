"""What goes on with a run in the job that follows, without a kernel."""

from __future__ import annotations

import sys
import time

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.cluster.cluster import reach
from rehearsal_kit.session.attach import resume

BEGIN_S = 300.0
"""What the ranks may take to begin, with buffers of any size to read."""


def main() -> None:
    """The whole process; its arguments are the folder of the job and that of the run."""
    folder, run = sys.argv[1:3]
    try:
        cluster = reach({"folder": folder})
        session = resume(run, cluster)
        deadline = time.monotonic() + BEGIN_S
        while session.state in ("created", "starting") and time.monotonic() < deadline:
            time.sleep(0.1)
        if session.state in ("failed", "starting"):
            sys.exit(f"rehearsal-kit: {run} was not resumed ({session.state}): {session.error}")
        session.leave()
        cluster.disconnect()
    except RehearsalKitError as error:
        sys.exit(
            f"rehearsal-kit: {run} cannot be resumed by itself: {error} Where its network or strategy is "
            "your own, resume it from a kernel: rk.resume(run, rk.connect_job(), network=..., strategy=...)."
        )
