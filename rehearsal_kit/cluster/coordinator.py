"""The coordinator on the scheduler's side: starts generations of ranks, watches them and starts them again.

    kernel --begin, post--> wishes written down --> rank 0          log_event <-- records <-- ranks
                                                                        |
    _drive:  workers assembled --> orders sent --> watched --> ended well: over
                  ^                                   |
                  +--- pause <--- failed, not too often, or more workers are there

So a run outlives the kernel that started it. Ranks are never mended inside a generation: whatever happens to
one of them ends it, and the next one begins at a checkpoint (after torchelastic: fail all rather than one).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from rehearsal_kit.base.errors import LeaseError, said
from rehearsal_kit.cluster.acceptance import refusal, too_late
from rehearsal_kit.cluster.making_room import make_room
from rehearsal_kit.cluster.protocol import CLOSING_TOPIC, RunOrder
from rehearsal_kit.cluster.watchdog import LOOK_S, GenerationError, Watchdog
from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.cluster.winding_down import pause, while_they_get_on
from rehearsal_kit.cluster.worker_pool import WorkerPool
from rehearsal_kit.record.lease import BEAT_S
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, LeaseTaken, RunOver, Stalled
from rehearsal_kit.record.records import Record, from_plain, to_plain
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.run_states import INTERRUPTED, REGROUPED

LOG = logging.getLogger(__name__)
PLUGIN = "rehearsal-kit-coordinator"
LOOK_SOON_S = 0.05
LONGEST_PAUSE_S = 30.0
KNOWN_RUNS = 10
"""Runs that are over and are remembered, for kernels that have not heard of their end."""


class Coordinator(SchedulerPlugin):
    """Lives in the scheduler's event loop; installing it again leaves the one that is there alone."""

    name = PLUGIN
    idempotent = True
    followed_by = ""
    """The job that goes on with the run when this cluster ends; empty if none does."""
    another = "rk.start_cluster()"
    """What a person types to get another cluster of the kind."""
    not_followed = ""
    """Why none does, where that was asked for."""

    async def start(self, scheduler: Scheduler) -> None:
        """Called by Dask when the plugin arrives at the scheduler."""
        self._scheduler = scheduler
        self._worker_pool = WorkerPool(scheduler)
        self._runs: dict[str, WatchedRun] = {}

    async def close(self) -> None:
        """Called by Dask when the scheduler closes."""
        for run in self._runs.values():
            for task in run.tasks:
                task.cancel()
            await asyncio.gather(*run.tasks, return_exceptions=True)
            run.close()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Called by Dask when a worker is gone."""
        for run in self._runs.values():
            run.wake.set()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Called by Dask when a kernel leaves or dies: whoever comes next may steer."""
        for run in self._runs.values():
            run.acceptance.lost(client)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by Dask for every event: ends of ranks and workers and written checkpoints matter here."""
        closing = topic == CLOSING_TOPIC and isinstance(msg, dict)
        run = self._runs.get(msg.get("topic", "") if closing else topic)
        if run is None or not isinstance(msg, dict):
            return
        if closing:  # a worker by itself: rank 0 has all ranks end well
            run.interrupting = asyncio.ensure_future(self._interrupt(run))
            return
        told = msg.get("told", {})
        match told.get("record"):
            case "Ended":
                run.hear(from_plain(told))
                run.wake.set()
            case "CheckpointTaken":
                run.taken[told["checkpoint"]] = (told["branch"], told["step"])
            case "CheckpointKept":
                run.got_to(run.taken.pop(told["checkpoint"], run.furthest))

    # Asked by kernels -----------------------------------------------------------------------------------

    def begin(self, plain: dict[str, Any], wishes: list[str], *, holder: str) -> str:
        """Run this, with these first wishes; returns why not. Asked again, it answers again.

        A run that is refused leaves nothing behind: its folder is free, and none of its wishes is waited for.
        """
        order = RunOrder.of(plain)
        if order.topic in self._runs:
            return ""
        if unfit := self._unfit(order):
            return unfit
        try:
            run = WatchedRun.begun(order, holder)
        except LeaseError as error:
            return str(error)
        except OSError as error:
            return (
                f"the scheduler cannot write to the run folder {order.run}: {error}. It has to lie on a file "
                "system that kernel and scheduler share, with room on it."
            )
        if refused := self._accepted(run, wishes, holder):
            run.close()  # the kernel takes the run for one that never began: nobody would steer or end it
            return f"{refused} So the run has not begun."
        self._runs[order.topic] = run
        run.tasks = [asyncio.create_task(self._drive(run)), asyncio.create_task(self._keep_lease(run))]
        return ""

    def _unfit(self, order: RunOrder) -> str:
        """Why this cluster can begin no run now; empty if it can."""
        if order.ranks < 1:
            return "this cluster has no worker, so there is no rank to start; is it about to end?"
        for run in self._runs.values():
            if not run.outcome:
                return (
                    f"this cluster trains for {run.order.run} already; close that session first, attach to "
                    f"it by rk.attach({run.order.run!r}), or start a second cluster."
                )
        return ""

    async def post(self, topic: str, wishes: list[str], holder: str) -> str:
        """Pass wishes on to rank 0, once they are written down; returns why not."""
        run = self._runs.get(topic)
        if run is None or run.outcome:
            known = "not known on this cluster any more" if run is None else run.outcome
            return refusal([json.loads(text) for text in wishes], too_late(known))
        refused = self._accepted(run, wishes, holder)
        await self._deliver(run)
        return refused

    def _accepted(self, run: WatchedRun, wishes: list[str], holder: str) -> str:
        """Write down wishes, and before them that their kernel steers; returns why not."""
        run.acceptance.returned(holder)
        # Else ranks that begin anew would not take them from the ledger: they are of nobody who ever steered.
        if holder == run.acceptance.holder and holder not in run.known and not self._steers(run, holder):
            reason = f"it cannot be written down that this kernel steers: make room in {run.folder.path}"
            return refusal([json.loads(text) for text in wishes], reason)
        return run.acceptance.accept(wishes, holder)

    def _steers(self, run: WatchedRun, holder: str) -> bool:
        """Write down and tell that this kernel steers from now on; whether that could be written."""
        record = LeaseTaken(holder=holder, time=time.time())
        line = self._write(run, record)
        if line is None:  # other kernels see it all the same, when they look
            return False
        run.known.add(holder)
        self._publish(run, record, line)
        return True

    def look(self, folder: str, holder: str) -> dict[str, Any] | None:
        """What is known of the newest run in this folder; None if nothing is. holder: who asks."""
        path = RunFolder(folder).path
        for run in reversed(self._runs.values()):
            if run.folder.path == path:
                run.acceptance.returned(holder)
                return {
                    "topic": run.order.topic,
                    "holder": run.acceptance.holder,
                    "outcome": run.outcome,
                    "workers": list(run.workers),
                }
        return None

    def lease(self, topic: str, holder: str, take: bool) -> bool:
        """Whether this kernel may steer from now on: if nobody does, or it takes over."""
        run = self._runs.get(topic)
        if run is None:  # over, and forgotten since this kernel has asked for it
            return False
        # Of a run that is over nothing is written down any more: its folder may be another cluster's by now.
        if not run.outcome and run.acceptance.take(holder, even_if_held=take):
            self._steers(run, holder)
        return run.acceptance.holder == holder

    def release(self, topic: str, holder: str) -> None:
        """This kernel does not steer any more."""
        if topic in self._runs:
            self._runs[topic].acceptance.release(holder)

    def going(self) -> list[str]:
        """Folders of the runs that are under way."""
        return [run.order.run for run in self._runs.values() if not run.outcome]

    async def wind_down(self, beat: Callable[[], None] = lambda: None) -> None:
        """Have all ranks end at their next step, with a checkpoint, before this cluster goes.

        Nobody wished for the end of a run: it goes on where it is resumed. beat: called whenever they have
        got on.
        """
        going = [run for run in self._runs.values() if not run.outcome]
        for run in going:
            run.ending = True
            await self._interrupt(run)
        await while_they_get_on(going, self._worker_pool, beat)

    # Generations ----------------------------------------------------------------------------------------

    async def _drive(self, run: WatchedRun) -> None:
        try:
            while not run.outcome:
                run.generation += 1
                try:
                    self._end(run, await self._generation(run))
                except GenerationError as failure:
                    reason, fatal = run.failed(failure)
                    self._tell_end(run, reason)
                    await self._worker_pool.settle(run.workers, run.order.topic)
                    # Once more: a rank that came late, when the others were given up, has made it anew.
                    run.folder.remove_rendezvous(run.generation)
                    await self._again(run, reason, fatal=fatal)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._give_up(run, f"the coordinator failed: {said(error)}")
        self._forget(run)

    def _forget(self, run: WatchedRun) -> None:
        """Keep of a run that is over what `look` tells; its job is as large as its network."""
        run.order = replace(run.order, spec=b"")
        self._scheduler._broker.truncate(run.order.topic)
        over = [topic for topic, each in self._runs.items() if each.outcome]
        for topic in over[:-KNOWN_RUNS]:
            del self._runs[topic]
            self._scheduler._broker._topics.pop(topic, None)

    def _end(self, run: WatchedRun, outcome: str) -> None:
        """The ranks have ended well; GenerationError where others are to take their place.

        Where more of them are to, the run goes on, and nothing has failed.
        """
        words = ""
        if outcome == REGROUPED:
            if not run.ending:
                self._tell_end(run, run.regrouped())
                return
            outcome = INTERRUPTED
        if outcome == INTERRUPTED:
            if not run.ending:
                raise GenerationError("a worker closed by itself; the ranks have kept all they had learned.")
            why = f", and no job follows: {self.not_followed}" if self.not_followed else ""
            words = f"the cluster ended{why}; rk.resume({run.order.run!r}, {self.another}) goes on."
            if self.followed_by:
                words = (
                    f"the time of its job is over; job {self.followed_by} goes on with the run by itself; "
                    f"rk.attach({run.order.run!r}) joins it there."
                )
        self._over(run, outcome, words)

    async def _interrupt(self, run: WatchedRun) -> None:
        if run.workers:
            await self._worker_pool.ask(run.workers[0], "rehearsal_kit_interrupt", topic=run.order.topic)

    async def _keep_lease(self, run: WatchedRun) -> None:
        """Show others that this run is under way; notice where they did not believe it."""
        while not run.outcome:
            await asyncio.sleep(BEAT_S)
            try:
                await asyncio.to_thread(run.lease.beat)  # a network file system may be away for a while
            except LeaseError as error:
                run.lost = str(error)
                run.wake.set()
                return
            except OSError as error:
                LOG.warning("no sign of life could be given in %s: %s", run.folder.path, error)

    async def _generation(self, run: WatchedRun) -> str:
        run.ended.clear()
        run.folder.clear_leftovers()
        workers = await self._worker_pool.assembled(run.order, run.wanted, ending=lambda: run.ending)
        run.assembled(workers, [self._worker_pool.name(address) for address in workers])
        self._tell(
            run,
            GenerationBegan(
                generation=run.generation, workers=tuple(workers), time=time.time(), of=run.order.ranks
            ),
        )
        rendezvous = run.folder.rendezvous(run.generation)
        try:
            await self._start(run, rendezvous)
            await self._deliver(run)
            if run.ending:  # it was to be told when there was no rank 0 yet: it would train to the last
                await self._interrupt(run)
            return await self._watch(run)
        finally:
            run.folder.remove_rendezvous(run.generation)

    async def _start(self, run: WatchedRun, rendezvous: Path) -> None:
        orders = run.orders(rendezvous, secrets.token_hex(16))
        for address, order in zip(run.workers, orders, strict=True):
            refused = await self._worker_pool.send(address, order)
            if refused is None or refused:
                raise GenerationError(
                    refused
                    or f"the worker of rank {order.rank} does not answer, or was lost while it began.",
                    rank=order.rank,
                )

    async def _watch(self, run: WatchedRun) -> str:
        progress = Watchdog(
            run.generation, ranks=len(run.workers), recovery=run.order.recovery, now=time.monotonic()
        )
        while True:
            run.wake.clear()
            if run.lost:
                raise GenerationError(run.lost, fatal=True)
            statuses = run.told(await self._worker_pool.statuses(run.workers, run.order.topic))
            present = self._worker_pool.present(run.workers)
            now = time.monotonic()
            if outcome := progress.outcome(statuses, present, now):
                return outcome
            if news := progress.news(statuses, now):
                self._tell(run, Stalled(rank=news[0], seconds=news[1], time=time.time()))
            if run.reduced:
                await make_room(run, self._worker_pool)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(run.wake.wait(), LOOK_SOON_S if progress.searching else LOOK_S)

    async def _again(self, run: WatchedRun, reason: str, *, fatal: bool) -> None:
        if fatal or (run.restarts >= run.order.recovery.restarts and not run.ending):
            self._give_up(run, reason)
            return
        run.restarts += 1
        if run.restarts > 1:
            await pause(run, min(2.0 ** (run.restarts - 2), LONGEST_PAUSE_S))
        if run.ending:  # ranks that were started now would not get far: it goes on where it is resumed
            self._end(run, INTERRUPTED)

    def _give_up(self, run: WatchedRun, reason: str) -> None:
        tried = f" (ranks were started again {run.restarts} times)" if run.restarts else ""
        self._over(run, "failed", reason + tried)

    def _over(self, run: WatchedRun, outcome: str, error: str) -> None:
        moves_to = self.followed_by if outcome == INTERRUPTED else ""
        record = RunOver(outcome=outcome, error=error, time=time.time(), moves_to=moves_to)
        line = self._write(run, record)
        run.outcome = outcome
        try:
            run.close()  # before anybody hears of it, who may want to go on with the run at once
        except OSError as away:  # what has ended well has not failed because its lease stays behind
            LOG.warning("the lease on %s could not be given back: %s", run.folder.path, away)
        self._publish(run, record, line)

    # Talking --------------------------------------------------------------------------------------------

    async def _deliver(self, run: WatchedRun) -> None:
        # What cannot be delivered is not lost: rank 0 reads the ledger of wishes when it begins.
        async with run.delivery:
            waiting = run.acceptance.waiting
            wishes = list(waiting)
            if not wishes or not run.workers:
                return
            refused = await self._worker_pool.ask(
                run.workers[0], "rehearsal_kit_post", topic=run.order.topic, wishes=wishes
            )
            if refused == "":
                del waiting[: len(wishes)]

    def _tell_end(self, run: WatchedRun, reason: str) -> None:
        self._tell(run, GenerationEnded(generation=run.generation, reason=reason, time=time.time()))

    def _tell(self, run: WatchedRun, record: Record) -> None:
        self._publish(run, record, self._write(run, record))

    def _write(self, run: WatchedRun, record: Record) -> int | None:
        """The line at which it stands in the ledger of generations; None where it cannot be written there."""
        if run.lost:
            return None
        try:
            return run.ledger.append(to_plain(record))
        except OSError as error:  # a full disk: those who listen must hear of it all the same
            LOG.warning("%s cannot be written: %s", run.folder.generations, error)
            return None

    def _publish(self, run: WatchedRun, record: Record, line: int | None) -> None:
        self._scheduler.log_event(run.order.topic, {"told": to_plain(record), "line": line})
