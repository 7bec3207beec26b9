"""Waiting for the last checkpoints of runs whose cluster is about to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from rehearsal_kit.base.patience import Patience
from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.cluster.worker_pool import WorkerPool

LOG = logging.getLogger(__name__)
LOOK_S = 0.05
WIND_DOWN_S = 10.0
"""Without any progress for so long, runs are not waited for that stop and write their last checkpoint."""


async def while_they_get_on(going: list[WatchedRun], pool: WorkerPool, beat: Callable[[], None]) -> None:
    """Wait for the end of runs: however large their last checkpoints are, as long as they are written.

    beat: called whenever they have got on.
    """
    began, beats, patience = [run.generation for run in going], [-1], Patience(WIND_DOWN_S)
    # Ranks that are started anew know nothing of the end, and are not waited for.
    while left := [r for r, g in zip(going, began, strict=True) if not r.outcome and r.generation == g]:
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
