"""What a kernel asks of the coordinator: functions that run in the scheduler's process.

Called through `client.run_on_scheduler`, which passes the scheduler as `dask_scheduler`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import Client, Scheduler

from rehearsal_kit.coordinator import PLUGIN, Coordinator

ANSWER_S = 60.0
"""A scheduler that has not answered for so long is frozen, or cannot be reached."""


def ask(
    client: Client, function: Callable[..., Any], *arguments: Any, within_s: float = ANSWER_S, **named: Any
) -> Any:
    """Have the scheduler run one of the functions below; TimeoutError where it does not answer in time."""
    try:
        return client.sync(client._run_on_scheduler, function, *arguments, callback_timeout=within_s, **named)
    except TimeoutError as error:
        raise TimeoutError(f"the scheduler has not answered for {within_s:.0f} s") from error


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
