"""The workers of a cluster, as the coordinator reaches them: asked with deadlines, restarted if need be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from distributed import Scheduler

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.cluster.protocol import HostStatus, Order, RunOrder, rank_key
from rehearsal_kit.cluster.watchdog import GenerationError

LOG = logging.getLogger(__name__)
ANSWER_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 2.0
GRACE_S = 3.0
"""What a rank has to end by itself once another has failed; then its worker is restarted."""
MOMENT_S = 0.5
"""What the scheduler has to notice that a process has ended which does not answer."""
RESTART_TIMEOUT_S = 30.0
SLOW_BYTES_S = 10 * MIB
"""A worker takes what it is sent no slower than that."""


@dataclass(frozen=True)
class Wanted:
    """Which workers a run wants, by their names, which they keep when they are restarted."""

    ranks: int
    known: Set[str] = frozenset()
    """Those that it had last; they come before others."""
    avoided: Set[str] = frozenset()
    """Those that are taken only where there are not enough others in time."""


class WorkerPool:
    """Knows workers by their addresses; a restarted one has another."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def name(self, address: str) -> str:
        """Name of a worker; it keeps that when it is restarted."""
        return str(self._scheduler.workers[address].name)

    def present(self, addresses: Sequence[str]) -> list[bool]:
        """Which of these the scheduler knows."""
        return [address in self._scheduler.workers for address in addresses]

    async def assembled(self, order: RunOrder, wanted: Wanted, *, ending: Callable[[], bool]) -> list[str]:
        """Workers in order of rank; none that is still busy.

        Fewer than wanted if no more are there in time, and the run may go on with so few; else
        GenerationError. ending: whether the cluster is about to end, so that nobody has to be waited for.
        """
        recovery, ranks = order.recovery, wanted.ranks
        fewest = ranks if recovery.fewest is None else min(ranks, recovery.fewest)
        deadline = time.monotonic() + recovery.wait_s
        while True:
            if ending():
                raise GenerationError("the cluster ends.")
            late = time.monotonic() > deadline  # before they are asked: who answers then is there in time
            free = await self.free(order.topic)
            fit = [address for address in free if self.name(address) not in wanted.avoided]
            if late and len(fit) < fewest:
                fit = free
            fit.sort(key=lambda address: self.name(address) not in wanted.known)
            if len(fit) >= (fewest if late else ranks):
                return sorted(fit[:ranks], key=self._place)
            if late:
                few = "" if recovery.fewest is None else f", and {recovery.fewest} is the fewest it may have"
                raise GenerationError(
                    f"{len(free)} of {order.ranks} workers are there after {recovery.wait_s:.0f} s{few}; "
                    "start more, or go on with fewer by rk.resume(run, cluster)."
                )
            await asyncio.sleep(0.1)

    async def free(self, topic: str) -> list[str]:
        """Workers, in their order, that answer and have no rank of any run."""
        ordered = sorted(self._scheduler.workers, key=self._place)
        statuses = await self.statuses(ordered, topic)
        return [
            address
            for address, status in zip(ordered, statuses, strict=True)
            if status is not None and not status.alive and address in self._scheduler.workers
        ]

    async def settle(self, workers: Sequence[str], topic: str) -> None:
        """Wait until no rank of the ended generation runs any more: those that do not end are restarted."""
        left = [address for address in workers if address in self._scheduler.workers]
        # A rank that was frozen may come to life again: those that hear this go no further with it.
        asks = [
            self.ask(address, "rehearsal_kit_give_up", timeout_s=STATUS_TIMEOUT_S, topic=topic)
            for address in left
        ]
        answers = await asyncio.gather(*asks)
        # Those that do not answer first: once their processes are gone, the ranks that wait for them end.
        silent = [address for address, answer in zip(left, answers, strict=True) if answer is None]
        await self._restart(await self._not_going(silent))
        left = [address for address in left if address not in silent]
        deadline = time.monotonic() + GRACE_S
        while left and time.monotonic() < deadline:
            statuses = await self.statuses(left, topic)
            # One that does not answer is not known to have ended: its rank may hold up the next generation.
            left = [
                address
                for address, status in zip(left, statuses, strict=True)
                if (status is None or status.alive) and address in self._scheduler.workers
            ]
            await asyncio.sleep(0.05)
        await self._restart(left)

    async def statuses(self, addresses: Sequence[str], topic: str) -> list[HostStatus | None]:
        """How the ranks of a run are, all asked at once; None where a worker does not answer."""
        asks = [
            self.ask(address, "rehearsal_kit_status", timeout_s=STATUS_TIMEOUT_S, topic=topic)
            for address in addresses
        ]
        answers = await asyncio.gather(*asks)
        return [None if answer is None else HostStatus(**answer) for answer in answers]

    async def ask(
        self, address: str, what: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **values: Any
    ) -> Any:
        """The answer of a host; None if there is none in time."""
        try:
            call = getattr(self._scheduler.rpc(address), what)
            return await asyncio.wait_for(call(**values), timeout_s)
        except Exception:  # gone, frozen, or so new that it has no host yet
            return None

    async def send(self, address: str, order: Order) -> Any:
        """Have a host start a rank, with a job as large as its network; None if no answer comes in time."""
        timeout_s = ANSWER_TIMEOUT_S + len(order.spec) / SLOW_BYTES_S
        return await self.ask(address, "rehearsal_kit_start", timeout_s=timeout_s, order=asdict(order))

    def _place(self, address: str) -> tuple[str, list[int | str]]:
        worker = self._scheduler.workers[address]
        return rank_key(worker.host, worker.name)

    async def _not_going(self, addresses: Sequence[str]) -> list[str]:
        """Which of these are still there in a moment.

        Others have ended by themselves, as on GPUs after an error: their nannies start new ones already,
        which would be ended in the middle of that.
        """
        deadline = time.monotonic() + MOMENT_S
        while there := [each for each in addresses if each in self._scheduler.workers]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        return there

    async def _restart(self, addresses: Sequence[str]) -> None:
        present = [address for address in addresses if address in self._scheduler.workers]
        if not present:
            return
        try:
            await self._scheduler.restart_workers(
                present,
                timeout=RESTART_TIMEOUT_S,
                wait_for_workers=False,
                on_error="return",
                stimulus_id=f"rehearsal-kit-{time.time()}",
            )
        except Exception as error:  # its nanny may be gone too; others may be there to take its place
            LOG.warning("workers %s could not be restarted: %s", present, error)
