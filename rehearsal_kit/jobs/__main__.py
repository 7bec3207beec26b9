"""The process of a job script: becomes the server of the job, in an environment of our making."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.cluster.server_process import PROGRAM


def main() -> None:
    """Its one argument is the folder of the job."""
    folder = Path(sys.argv[1])
    if not folder.is_dir():
        sys.exit(
            f"rehearsal-kit: {socket.gethostname()} does not see {folder}; have REHEARSAL_KIT_HOME name a "
            "folder that the nodes share with the login node, and launch again."
        )
    server = [sys.executable, "-c", PROGRAM.format(module="jobs.job_server"), str(folder)]
    os.execve(sys.executable, server, child_environment(os.environ))  # noqa: S606 - our own module


if __name__ == "__main__":
    main()
