"""Calls from a kernel into the processes of a cluster, none of them without a deadline.

Whoever has to know at once whether an answer came calls `within`; for all others the rest says what to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client

from rehearsal_kit.base.errors import ClusterGoneError

ANSWER_S = 30.0
"""No function that is called so takes more than a moment; a scheduler may have to start a process first."""
LOOK_S = 0.5
"""Seconds between two looks at whether a cluster that does not answer is still there."""


def never() -> bool:
    """What is asked of a cluster whose end cannot be seen from here."""
    return False


def within(
    client: Client,
    timeout_s: float,
    call: Callable[..., Any],
    *arguments: Any,
    gone: Callable[[], bool] = never,
    **named: Any,
) -> Any:
    """What a coroutine function of this client returns; TimeoutError, in words, where it has not in time.

    Dask waits for ever where it is not told otherwise, as for a worker that is frozen.

    gone: whether nobody can answer any more, asked while no answer comes; then nobody waits any longer.
    """
    try:
        return client.sync(_unless, gone, call, *arguments, callback_timeout=timeout_s, **named)
    except TimeoutError as error:
        late = f"the cluster has not answered in {timeout_s:g} s"
        raise TimeoutError("the cluster has ended" if gone() else late) from error


async def _unless(gone: Callable[[], bool], call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    answer = asyncio.ensure_future(call(*arguments, **named))
    try:
        while not (await asyncio.wait({answer}, timeout=LOOK_S))[0]:
            if gone():
                raise TimeoutError
        return answer.result()
    finally:
        answer.cancel()


def ask_scheduler(
    client: Client, function: Callable[..., Any], *arguments: Any, timeout_s: float = ANSWER_S, **named: Any
) -> Any:
    """What this function returns in the scheduler; ClusterGoneError where it has not in time."""
    return _within(client, timeout_s, client._run_on_scheduler, function, *arguments, **named)


def ask_workers(
    client: Client,
    function: Callable[..., Any],
    *arguments: Any,
    workers: Sequence[str] | None = None,
    timeout_s: float = ANSWER_S,
) -> dict[str, Any]:
    """What it returns in each of these workers, or in all, by address; ClusterGoneError if one is silent."""
    addresses = None if workers is None else list(workers)
    answers: dict[str, Any] = _within(client, timeout_s, client._run, function, *arguments, workers=addresses)
    return answers


def ask_identity(client: Client, *, gone: Callable[[], bool] = never) -> dict[str, Any]:
    """What the scheduler tells of itself and of all its workers; gone: as in `within`."""
    told: dict[str, Any] = _within(client, ANSWER_S, _identity, client, gone=gone)
    return told


async def _identity(client: Client) -> dict[str, Any]:
    scheduler: Any = client.scheduler
    told: dict[str, Any] = await scheduler.identity(n_workers=-1)
    return told


def _within(
    client: Client,
    timeout_s: float,
    call: Callable[..., Any],
    *arguments: Any,
    gone: Callable[[], bool] = never,
    **named: Any,
) -> Any:
    if client.status in ("closing", "closed"):
        raise ClusterGoneError(
            "the connection to this cluster was closed, or its scheduler has ended; connect anew, by "
            "rk.attach(run), rk.connect_job() or rk.connect(), or start another one."
        )
    try:
        return within(client, timeout_s, call, *arguments, gone=gone, **named)
    except TimeoutError as error:
        if gone():
            raise ClusterGoneError(f"{error}; start another one, by rk.start_cluster().") from error
        raise ClusterGoneError(
            f"{error}: it is frozen, or the way to it is broken. Try again; if it stays so, end it by "
            "`rehearsal-kit stop`, and go on by rk.resume(run, rk.start_cluster())."
        ) from error
