"""`rehearsal-kit jobs`: the jobs that were launched, where they are, and their logs."""

from __future__ import annotations

import argparse
import time

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cluster.job_folder import known_jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.set_defaults(command=_jobs)


def _jobs(chosen: argparse.Namespace) -> int:
    jobs, unanswered = known_jobs(), 0
    for files in jobs:
        record = files.read_job()
        try:
            state = str(files.state())
        except ClusterError as error:  # the others are told all the same
            state, unanswered = f"not known: {error}", 1
        there = ", its cluster is there" if files.address.exists() else ""
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.made))
        numbers = ", ".join(record.numbers) or files.folder.name
        print(f"{numbers}  {record.site}, {record.workers} workers, launched {made}: {state}{there}")
        print(f"    {files.log}")
    if not jobs:
        print("no job was launched from here.")
    return unanswered
