"""Having the ranks of a run end between two tasks, where there are workers for more of them."""

from __future__ import annotations

import time

from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.cluster.worker_pool import WorkerPool


async def make_room(run: WatchedRun, pool: WorkerPool) -> None:
    """Tell rank 0 whether all ranks are to end at the next end of a task; nothing where it knows that."""
    free = [each for each in await pool.free(run.order.topic) if each not in run.workers]
    more = run.returned.steady(free, time.monotonic())
    if more == run.more:
        return
    topic, wanted = run.order.topic, bool(more)
    heard = await pool.ask(run.workers[0], "rehearsal_kit_regroup", topic=topic, wanted=wanted)
    if heard is not None:
        run.more = more
