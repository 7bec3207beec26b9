"""What a kernel asks of the coordinator: functions that run in the scheduler's process.

Called through `client.run_on_scheduler`, which passes the scheduler as `dask_scheduler`.
"""

from __future__ import annotations

from typing import Any

from distributed import Scheduler

from rehearsal_kit.cluster.coordinator import PLUGIN, Coordinator


def begin_run(order: dict[str, Any], wishes: list[str], *, holder: str, dask_scheduler: Scheduler) -> str:
    """Run this, with these first wishes; returns why not."""
    return _coordinator(dask_scheduler).begin(order, wishes, holder=holder)


async def post_wishes(topic: str, wishes: list[str], *, holder: str, dask_scheduler: Scheduler) -> str:
    """Pass wishes on; returns why not."""
    return await _coordinator(dask_scheduler).post(topic, wishes, holder)


def look_for(folder: str, *, holder: str = "", dask_scheduler: Scheduler) -> dict[str, Any] | None:
    """What is known of a run; holder: who asks."""
    plugin = dask_scheduler.plugins.get(PLUGIN)
    return plugin.look(folder, holder) if isinstance(plugin, Coordinator) else None


def ask_lease(topic: str, holder: str, *, take: bool, dask_scheduler: Scheduler) -> bool:
    """Whether this kernel may steer."""
    return _coordinator(dask_scheduler).lease(topic, holder, take)


def release_lease(topic: str, holder: str, dask_scheduler: Scheduler) -> None:
    """This kernel does not steer any more."""
    _coordinator(dask_scheduler).release(topic, holder)


def _coordinator(scheduler: Scheduler) -> Coordinator:
    plugin = scheduler.plugins[PLUGIN]
    assert isinstance(plugin, Coordinator)  # noqa: S101 - the name is ours
    return plugin
