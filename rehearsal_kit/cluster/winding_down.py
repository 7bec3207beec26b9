"""Waiting for the last checkpoints of runs whose cluster is about to end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from rehearsal_kit.base.patience import Patience
from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.cluster.worker_pool import WorkerPool

LOG = logging.getLogger(__name__)
LOOK_S = 0.05
WIND_DOWN_S = 10.0
"""Without any progress for so long, runs are not waited for that stop and write their last checkpoint."""


async def pause(run: WatchedRun, seconds: float) -> None:
    """Sleep for so long, unless the cluster of the run is about to end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.ending:
        await asyncio.sleep(LOOK_S)


async def while_they_get_on(going: list[WatchedRun], pool: WorkerPool, beat: Callable[[], None]) -> None:
    """Wait for the end of runs: however large their last checkpoints are, as long as they are written.

    beat: called whenever they have got on.
    """
    beats, patience = [-1], Patience(WIND_DOWN_S)
    while left := [run for run in going if not run.outcome]:
        asked = [pool.statuses(run.workers, run.order.topic) for run in left]
        statuses = [status for each in await asyncio.gather(*asked) for status in each]
        now = [-1 if status is None else status.beats for status in statuses]
        if now != beats:
            beats = now
            beat()
        if not patience.lasts(now):
            names = ", ".join(run.order.run for run in left)
            LOG.warning("no last checkpoint of %s: no progress in %.0f s", names, WIND_DOWN_S)
            return
        await asyncio.sleep(LOOK_S)
