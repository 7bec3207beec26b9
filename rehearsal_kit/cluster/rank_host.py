"""What makes a Dask worker host a rank: a plugin with a training thread of its own.

Not a task, because Dask would run it again at the wrong moment; not an actor, because that dies with the
kernel. The calls below return at once: the training thread is the only one that touches torch.distributed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import queue
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distributed import Worker
from distributed.comm.addressing import get_address_host
from distributed.diagnostics.plugin import WorkerPlugin

from rehearsal_kit.base.errors import (
    ClusterError,
    LeaseError,
    ReplayError,
    RunFolderError,
    SettingsError,
    said_where,
)
from rehearsal_kit.base.patience import Patience
from rehearsal_kit.base.process_groups import Meeting, meet
from rehearsal_kit.cluster.devices import rank_device
from rehearsal_kit.cluster.protocol import CLOSING_TOPIC, HostStatus, Order
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.preview_files import Preview, Wanted
from rehearsal_kit.record.rank_records import Ended
from rehearsal_kit.record.records import Record, to_plain

PLUGIN = "rehearsal-kit"
CLOSING_S = 8.0
"""Without any progress for so long, ranks are not waited for that end because a worker of theirs closes."""
POLL_S = 0.02
FIRST_S, LOOK_S = 1.0, 0.02
"""How long a preview is waited for that nobody has asked for before, and between two looks."""


@dataclass
class _Hosted:
    order: Order
    mailbox: queue.SimpleQueue[str]
    thread: threading.Thread
    rank: Rank | None = None
    outcome: str = ""
    error: str = ""
    fatal: bool = False
    failed_at: float = 0.0
    given_up: bool = False
    """Whether another generation takes its place."""
    interrupted: bool = False
    """Whether its process, or that of another rank, is about to end."""


class RankHost(WorkerPlugin):
    """Hosts at most one rank at a time. Installing it again leaves a running rank alone."""

    name = PLUGIN
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Called by Dask when the plugin arrives on a worker."""
        self._worker = worker
        self._hosted: _Hosted | None = None
        self._closing = False
        worker.handlers.update({  # what the coordinator calls; plain values only, and all return at once
            "rehearsal_kit_start": self.start,
            "rehearsal_kit_post": self.post,
            "rehearsal_kit_status": self.status,
            "rehearsal_kit_give_up": self.give_up,
            "rehearsal_kit_interrupt": self.interrupt,
        })  # fmt: skip

    async def teardown(self, worker: Worker) -> None:
        """Called by Dask when the worker closes: all ranks take a checkpoint at their next step, and end.

        Nobody wished for it, so the run goes on wherever its ranks are started again.
        """
        hosted, self._closing = self._hosted, True
        if hosted is None or hosted.given_up or not hosted.thread.is_alive():
            return
        await self.interrupt(hosted.order.topic)
        if hosted.order.rank:  # rank 0 decides; the coordinator knows where it is
            with contextlib.suppress(Exception):  # the scheduler may be gone before its workers
                worker.log_event(CLOSING_TOPIC, {"topic": hosted.order.topic})
        patience = Patience(CLOSING_S)
        while hosted.thread.is_alive() and patience.lasts(0 if hosted.rank is None else hosted.rank.beats):
            await asyncio.sleep(POLL_S)

    async def start(self, order: dict[str, Any]) -> str:
        """Begin a rank in a thread of its own; returns why not, if another has its thread here."""
        wanted, live = Order(**order), self._hosted
        if self._closing:
            return f"worker {self._worker.name} is closing."
        if live is not None and live.thread.is_alive():
            return (
                f"worker {self._worker.name} still trains for {live.order.run}; close that session first, or "
                "start a second cluster."
            )
        if (
            live is not None
            and live.order.topic == wanted.topic
            and live.order.generation >= wanted.generation
        ):
            return (
                f"worker {self._worker.name} was asked for generation {wanted.generation}, but has had "
                f"{live.order.generation} already; whoever asked is out of date."
            )
        name = f"train-g{wanted.generation}-r{wanted.rank}"
        mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        hosted = _Hosted(wanted, mailbox, threading.Thread(target=self._train, name=name, daemon=True))
        self._hosted = hosted
        hosted.thread.start()
        return ""

    async def post(self, topic: str, wishes: list[str]) -> str:
        """Put wishes (JSON) into the mailbox; rank 0 takes them out at its next step boundary."""
        hosted = self._hosted_of(topic)
        if hosted is None:
            return f"worker {self._worker.name} has no rank of this run; was it restarted?"
        for wish in wishes:
            hosted.mailbox.put(wish)
        return ""

    async def give_up(self, topic: str) -> str:
        """Have the rank of this run fail at its next step boundary, if it gets there."""
        hosted = self._hosted_of(topic)
        if hosted is not None:
            hosted.given_up = True
            if hosted.rank is not None:
                hosted.rank.give_up()
        return ""

    async def interrupt(self, topic: str) -> str:
        """Have all ranks of this run end at their next step boundary; heard by rank 0."""
        hosted = self._hosted_of(topic)
        if hosted is not None:
            hosted.interrupted = True
            if hosted.rank is not None:
                hosted.rank.interrupt()
        return ""

    async def status(self, topic: str) -> dict[str, Any]:
        """How the rank of this run is: a `HostStatus`."""
        hosted = self._hosted_of(topic)
        if hosted is None:
            alive = self._hosted is not None and self._hosted.thread.is_alive()
            return asdict(HostStatus(alive=alive or self._closing))
        rank = hosted.rank
        return asdict(
            HostStatus(
                generation=hosted.order.generation,
                alive=hosted.thread.is_alive() or self._closing,
                beats=0 if rank is None else rank.beats,
                step=0 if rank is None else rank.step,
                training=rank is not None,
                outcome=hosted.outcome,
                error=hosted.error,
                fatal=hosted.fatal,
                failed_at=hosted.failed_at,
            )
        )

    def preview(self, topic: str, wanted: Wanted) -> Preview | None:
        """The newest preview of what is wanted, kept fresh for some seconds from now on."""
        hosted = self._hosted_of(topic)
        rank = None if hosted is None else hosted.rank
        if rank is None:
            return None
        task, trained = wanted
        rank.previewer.ask(task, trained=trained)
        return rank.previewer.newest(task, trained=trained)

    def _hosted_of(self, topic: str) -> _Hosted | None:
        """The rank of the run of this topic; None if the rank here, if there is one, is of another run."""
        hosted = self._hosted
        return hosted if hosted is not None and hosted.order.topic == topic else None

    def _train(self) -> None:
        hosted = self._hosted
        assert hosted is not None  # noqa: S101 - start() has set it before this thread began
        order, weights = hosted.order, ""
        outcome = "failed"
        try:
            device = rank_device()
            spec: RunSpec = pickle.loads(order.spec)  # noqa: S301 - from the kernel that runs this cluster
            meeting = Meeting(
                rendezvous=Path(order.rendezvous),
                nonce=order.nonce,
                rank=order.rank,
                ranks=order.ranks,
                timeout_s=order.timeout_s,
                device=device,
                address=get_address_host(self._worker.contact_address or self._worker.address),
            )
            with meet(meeting) as groups:
                hosted.rank = Rank(
                    replace(spec, device=device),
                    groups,
                    mailbox=hosted.mailbox,
                    publish=self._publish,
                    generation=order.generation,
                    lease=order.lease,
                )
                if hosted.given_up:  # while it was read
                    hosted.rank.give_up()
                if hosted.interrupted:
                    hosted.rank.interrupt()
                outcome = hosted.rank.run()
                weights = hosted.rank.fingerprint()
        except BaseException as failure:  # also a network that calls sys.exit(): nobody else would say so
            hosted.failed_at = time.time()
            hosted.fatal = isinstance(
                failure, (SettingsError, ReplayError, RunFolderError, LeaseError, ClusterError)
            )
            hosted.error = said_where(failure)
            traceback.print_exception(failure)
        step = 0 if hosted.rank is None else hosted.rank.step
        if outcome == "failed":
            # The others notice when the connections close, and they close with the last reference to them.
            hosted.rank = None
            gc.collect()
        self._publish(
            Ended(
                rank=order.rank,
                step=step,
                outcome=outcome,
                error=hosted.error,
                time=time.time(),
                generation=order.generation,
                weights=weights,
            )
        )
        hosted.outcome = outcome

    def _publish(self, record: Record, line: int | None = None) -> None:
        hosted = self._hosted
        assert hosted is not None  # noqa: S101 - only the training thread publishes
        # Wrapped, because Dask adds a key of its own to the dictionaries it passes on.
        self._worker.log_event(hosted.order.topic, {"told": to_plain(record), "line": line})


async def dask_setup(worker: Worker) -> None:
    """Called by Dask because this module is preloaded: import now what the first step would import."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


# Called through client.run, which passes the worker as `dask_worker`.


async def get_preview(topic: str, wanted: Wanted, dask_worker: Worker) -> Preview | None:
    """Fetch a preview from rank 0; None if this worker has no rank of the run, or none is made in a second.

    Nobody has looked at this task for a while, perhaps: then it is made at the next step.
    """
    host = dask_worker.plugins.get(PLUGIN)
    deadline = time.monotonic() + FIRST_S
    while isinstance(host, RankHost):
        preview = host.preview(topic, wanted)
        if preview is not None or time.monotonic() > deadline:
            return preview
        await asyncio.sleep(LOOK_S)
    return None
