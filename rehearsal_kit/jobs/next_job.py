"""Having another job follow one whose time is over, for the run that goes on there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.files import write_private
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.job_folder import JobFiles

MISSED = 2
"""So many jobs in a row may end before they have come to a run; the next one does not get another."""


def waiting_run(files: JobFiles) -> tuple[str, int]:
    """The run with which this job is to go on, and how many jobs in a row have not come to that before.

    Empty where there is none, or it is under way.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        waiting = json.loads(files.going_on.read_text())
        return str(waiting["run"]), int(waiting["missed"])
    return "", 0


def follow(files: JobFiles, going: Sequence[str], *, worked: bool) -> tuple[str, str]:
    """The number of the job that follows this one, and why none does; both are empty where there is no run.

    going: folders of the runs that are under way in this job. worked: whether anybody was connected, or any
    step was taken.
    """
    run, missed = (going[0], -1) if going else waiting_run(files)
    if not run:
        return "", ""
    why = ""
    if going and not worked:
        why = "nobody is connected, and no step was taken in it"
    if missed >= MISSED:
        why = "several jobs in a row ended before the run was under way in them; ask for more time"
    if not why:
        try:
            write_private(files.going_on, json.dumps({"run": run, "missed": missed + 1}))
            return _submitted(files), ""
        except (ClusterError, OSError) as error:
            why = str(error)
            files.going_on.unlink(missing_ok=True)
    if not going:  # there is no run to say so, and whoever waits for it hears of it there
        words = f"it ended before the run was under way in it, and no job follows: {why}.\n"
        write_private(files.failure, words)
    return "", why


def _submitted(files: JobFiles) -> str:
    """The number of the job that follows; the last checkpoint waits for it, but not for long."""
    order = files.read_order()
    system = SYSTEMS[order.system]
    number = system.submit(files.script, after=system.here(), answer_s=order.margin_s / 4)
    try:
        files.write_job(replace(files.read_job(), numbers=(*files.read_job().numbers, number)))
    except (ClusterError, OSError):
        system.cancel(number)  # nobody would know of it
        raise
    return number
