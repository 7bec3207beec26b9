"""On the scheduler's side: starts generations of ranks, watches them and starts them again.

So a run outlives the kernel that started it. Ranks are never mended inside a generation: whatever happens to
one of them ends it, and the next one begins at a checkpoint (after torchelastic: fail all rather than one).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from rehearsal_kit.arrivals import natural_key
from rehearsal_kit.commands import Stop, Wish
from rehearsal_kit.orders import HostStatus, Order, RunOrder
from rehearsal_kit.patience import Patience
from rehearsal_kit.progress import LOOK_S, GenerationError, Progress
from rehearsal_kit.run_folder import Ledger, RunFolder
from rehearsal_kit.telemetry import (
    GenerationBegan,
    GenerationEnded,
    LeaseTaken,
    Record,
    RunOver,
    Stalled,
    to_plain,
)
from rehearsal_kit.tensor_files import nothing

LOG = logging.getLogger(__name__)
PLUGIN = "rehearsal-kit-coordinator"
LOOK_SOON_S = 0.05
ANSWER_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 2.0
GRACE_S = 3.0
"""What a rank has to end by itself once another has failed; then its worker is restarted."""
RESTART_TIMEOUT_S = 30.0
LONGEST_PAUSE_S = 30.0
WIND_DOWN_S = 10.0
"""Without any progress for so long, runs are not waited for that stop and write their last checkpoint."""


@dataclass
class Watched:
    """A run as the coordinator knows it."""

    order: RunOrder
    ledger: Ledger
    holder: str
    """The kernel that may steer it; empty once that has gone."""
    generation: int
    held_last: str = ""
    """The kernel that was lost while it held the run; it may come back."""
    workers: list[str] = field(default_factory=list)
    """Addresses in order of rank, of the generation under way."""
    names: set[str] = field(default_factory=set)
    """Of the workers that it had so far."""
    undelivered: list[str] = field(default_factory=list)
    restarts: int = 0
    """In a row: since the run has last got further than ever before."""
    taken: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Branch and step of checkpoints, by number."""
    furthest: tuple[int, int] = (0, 0)
    """Branch and step of the last checkpoint that is whole on disk."""
    outcome: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Coordinator(SchedulerPlugin):
    """Lives in the scheduler's event loop; installing it again leaves the one that is there alone."""

    name = PLUGIN
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin arrives at the scheduler."""
        self._scheduler = scheduler
        self._runs: dict[str, Watched] = {}

    async def close(self) -> None:
        """Called by Dask when the scheduler closes."""
        for run in self._runs.values():
            if run.task is not None:
                run.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await run.task
            run.ledger.close()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Called by Dask when a worker is gone."""
        for run in self._runs.values():
            run.wake.set()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by Dask when a kernel leaves or dies: whoever comes next may steer."""
        for run in self._runs.values():
            if run.holder.partition("/")[0] == client:
                run.held_last, run.holder = run.holder, ""

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for every event: the end of a rank and a written checkpoint matter here."""
        run = self._runs.get(topic)
        if run is None or not isinstance(msg, dict):
            return
        told = msg.get("told", {})
        match told.get("record"):
            case "Ended":
                run.wake.set()
            case "CheckpointTaken":
                run.taken[told["checkpoint"]] = (told["branch"], told["step"])
            case "CheckpointKept":
                # Not for one that is written again where the ranks failed: they would do so for ever.
                at = run.taken.pop(told["checkpoint"], run.furthest)
                if at > run.furthest:
                    run.furthest, run.restarts = at, 0

    # Asked by kernels -----------------------------------------------------------------------------------

    def begin(self, plain: dict[str, Any], holder: str) -> str:
        """Run this; returns why not, if another run is under way here."""
        order = RunOrder(**plain)
        if order.ranks < 1:
            return "this cluster has no worker, so there is no rank to start; is it about to end?"
        for run in self._runs.values():
            if not run.outcome:
                return (
                    f"this cluster trains for {run.order.run} already; close that session first, attach to "
                    "it by rk.attach(...), or start a second cluster."
                )
        ledger = Ledger(RunFolder(order.run).generations, durable=True)
        run = Watched(order, ledger, holder, order.generation - 1)
        self._runs[order.topic] = run
        run.task = asyncio.create_task(self._drive(run))
        return ""

    async def post(self, topic: str, wishes: list[str], holder: str) -> str:
        """Pass wishes on to rank 0; returns why not, if another kernel holds the run."""
        run = self._runs[topic]
        if not run.holder and run.held_last == holder:  # its connection was broken for a while
            run.holder = holder
        if run.holder != holder:
            return (
                "another kernel steers this run; this one watches. To steer from here: "
                f"rk.attach({run.order.run!r}, take=True)."
            )
        run.undelivered += wishes
        await self._deliver(run)
        return ""

    def look(self, folder: str) -> dict[str, Any] | None:
        """What is known of the newest run in this folder; None if nothing is."""
        for run in reversed(self._runs.values()):
            if run.order.run == folder:
                return {
                    "topic": run.order.topic,
                    "ranks": run.order.ranks,
                    "held": bool(run.holder),
                    "outcome": run.outcome,
                    "workers": list(run.workers),
                }
        return None

    def lease(self, topic: str, holder: str, take: bool) -> bool:
        """Whether this kernel may steer from now on: if nobody does, or it takes over."""
        run = self._runs[topic]
        if take or not run.holder:
            run.holder, run.held_last = holder, ""
            self._tell(run, LeaseTaken(holder=holder, time=time.time()))
        return run.holder == holder

    def release(self, topic: str, holder: str) -> None:
        """This kernel does not steer any more."""
        run = self._runs.get(topic)
        if run is not None and run.holder == holder:
            run.holder = ""

    async def wind_down(self, beat: Callable[[], None] = nothing) -> None:
        """Have all runs end at their next step, with a checkpoint, before this cluster goes.

        beat: called whenever they have got on.
        """
        going = [run for run in self._runs.values() if not run.outcome]
        for run in going:
            run.undelivered.append(Wish(0, Stop()).to_json())
            await self._deliver(run)
        await self._while_they_get_on(going, beat)

    async def _while_they_get_on(self, going: list[Watched], beat: Callable[[], None]) -> None:
        """Wait for the end of runs: however large their last checkpoints are, as long as they are written."""
        began, beats, patience = [run.generation for run in going], [-1], Patience(WIND_DOWN_S)
        # Ranks that are started anew know nothing of the end, and are not waited for.
        while left := [r for r, g in zip(going, began, strict=True) if not r.outcome and r.generation == g]:
            asked = [self._status(address, run) for run in left for address in run.workers]
            now = [-1 if status is None else status.beats for status in await asyncio.gather(*asked)]
            if now != beats:
                beats = now
                beat()
            if not patience.lasts(now):
                names = ", ".join(run.order.run for run in left)
                LOG.warning("no last checkpoint of %s: no progress in %.0f s", names, WIND_DOWN_S)
                return
            await asyncio.sleep(LOOK_SOON_S)

    # Generations ----------------------------------------------------------------------------------------

    async def _drive(self, run: Watched) -> None:
        try:
            while not run.outcome:
                run.generation += 1
                try:
                    run.outcome = await self._generation(run)
                    self._tell(run, RunOver(outcome=run.outcome, error="", time=time.time()))
                except GenerationError as failure:
                    self._tell(
                        run,
                        GenerationEnded(generation=run.generation, reason=str(failure), time=time.time()),
                    )
                    await self._settle(run)
                    # Once more: a rank that came late, when the others were given up, has made it anew.
                    RunFolder(run.order.run).rendezvous(run.generation).unlink(missing_ok=True)
                    await self._again(run, failure)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._give_up(run, f"the coordinator failed: {type(error).__name__}: {error}")

    async def _generation(self, run: Watched) -> str:
        run.workers = await self._assembled(run)
        run.names |= {str(self._scheduler.workers[address].name) for address in run.workers}
        self._tell(
            run,
            GenerationBegan(generation=run.generation, workers=tuple(run.workers), time=time.time()),
        )
        rendezvous = RunFolder(run.order.run).rendezvous(run.generation)
        try:
            await self._start(run, rendezvous)
            await self._deliver(run)
            return await self._watch(run)
        finally:
            rendezvous.unlink(missing_ok=True)

    async def _assembled(self, run: Watched) -> list[str]:
        """Workers in order of rank: those the run has had before, else others; none that is still busy."""
        deadline = time.monotonic() + run.order.wait_s
        while True:
            known = self._scheduler.workers
            ordered = sorted(
                known, key=lambda address: (known[address].host, natural_key(str(known[address].name)))
            )
            ordered.sort(key=lambda address: str(known[address].name) not in run.names)
            answers = await asyncio.gather(*(self._is_free(address, run) for address in ordered))
            free = [address for address, is_free in zip(ordered, answers, strict=True) if is_free]
            if len(free) >= run.order.ranks:
                chosen = free[: run.order.ranks]
                return sorted(
                    chosen, key=lambda address: (known[address].host, natural_key(str(known[address].name)))
                )
            if time.monotonic() > deadline:
                raise GenerationError(
                    f"{len(free)} of {run.order.ranks} workers are there after {run.order.wait_s:.0f} s; "
                    "start more, or go on with fewer by rk.resume(run, cluster)."
                )
            await asyncio.sleep(0.1)

    async def _is_free(self, address: str, run: Watched) -> bool:
        status = await self._status(address, run)
        return status is not None and not status.alive

    async def _start(self, run: Watched, rendezvous: Path) -> None:
        nonce = secrets.token_hex(16)
        for rank, address in enumerate(run.workers):
            order = Order(
                topic=run.order.topic,
                job=run.order.job,
                run=run.order.run,
                generation=run.generation,
                rank=rank,
                ranks=run.order.ranks,
                rendezvous=str(rendezvous),
                nonce=nonce,
                timeout_s=run.order.stall_s + 60.0,  # the progress watch comes first
            )
            refused = await self._ask(address, "rehearsal_kit_start", order=asdict(order))
            if refused is None or refused:
                raise GenerationError(
                    refused or f"the worker of rank {rank} does not answer, or was lost while it began."
                )

    async def _watch(self, run: Watched) -> str:
        progress = Progress(
            run.generation,
            ranks=run.order.ranks,
            stall_s=run.order.stall_s,
            wait_s=run.order.wait_s,
            now=time.monotonic(),
        )
        while True:
            run.wake.clear()
            statuses = await asyncio.gather(*(self._status(address, run) for address in run.workers))
            present = [address in self._scheduler.workers for address in run.workers]
            now = time.monotonic()
            if outcome := progress.outcome(statuses, present, now):
                return outcome
            if news := progress.news(statuses, now):
                self._tell(run, Stalled(rank=news[0], seconds=news[1], time=time.time()))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(run.wake.wait(), LOOK_SOON_S if progress.searching else LOOK_S)

    async def _settle(self, run: Watched) -> None:
        """Until no rank of the ended generation runs any more: those that do not end are restarted."""
        left = [address for address in run.workers if address in self._scheduler.workers]
        # A rank that was frozen may come to life again: those that hear this go no further with it.
        asks = [
            self._ask(address, "rehearsal_kit_give_up", timeout_s=STATUS_TIMEOUT_S, topic=run.order.topic)
            for address in left
        ]
        answers = await asyncio.gather(*asks)
        # Those that do not answer first: once their processes are gone, the ranks that wait for them end.
        silent = [address for address, answer in zip(left, answers, strict=True) if answer is None]
        await self._restart(silent)
        left = [address for address in left if address not in silent]
        deadline = time.monotonic() + GRACE_S
        while left and time.monotonic() < deadline:
            statuses = await asyncio.gather(*(self._status(address, run) for address in left))
            left = [a for a, s in zip(left, statuses, strict=True) if s is not None and s.alive]
            await asyncio.sleep(0.05)
        await self._restart(left)

    async def _restart(self, addresses: list[str]) -> None:
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

    async def _again(self, run: Watched, failure: GenerationError) -> None:
        if failure.fatal or run.restarts >= run.order.restarts:
            self._give_up(run, str(failure))
            return
        run.restarts += 1
        if run.restarts > 1:
            await asyncio.sleep(min(2.0 ** (run.restarts - 2), LONGEST_PAUSE_S))

    def _give_up(self, run: Watched, reason: str) -> None:
        run.outcome = "failed"
        tried = f" (ranks were started again {run.restarts} times)" if run.restarts else ""
        self._tell(run, RunOver(outcome="failed", error=reason + tried, time=time.time()))

    # Talking --------------------------------------------------------------------------------------------

    async def _deliver(self, run: Watched) -> None:
        # What cannot be delivered is not lost: rank 0 reads the ledger of wishes when it begins.
        wishes, run.undelivered = run.undelivered, []
        if wishes and run.workers:
            refused = await self._ask(
                run.workers[0], "rehearsal_kit_post", topic=run.order.topic, wishes=wishes
            )
            if refused is None or refused:
                run.undelivered = wishes + run.undelivered
        elif wishes:
            run.undelivered = wishes

    async def _status(self, address: str, run: Watched) -> HostStatus | None:
        answer = await self._ask(
            address, "rehearsal_kit_status", timeout_s=STATUS_TIMEOUT_S, topic=run.order.topic
        )
        return None if answer is None else HostStatus(**answer)

    async def _ask(
        self, address: str, what: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **values: Any
    ) -> Any:
        """The answer of a host; None if there is none in time."""
        try:
            call = getattr(self._scheduler.rpc(address), what)
            return await asyncio.wait_for(call(**values), timeout_s)
        except Exception:  # gone, frozen, or so new that it has no host yet
            return None

    def _tell(self, run: Watched, record: Record) -> None:
        line = run.ledger.append(to_plain(record))
        self._scheduler.log_event(run.order.topic, {"told": to_plain(record), "line": line})
