"""What makes a Dask worker host a rank: a plugin with a training thread of its own.

Not a task, because Dask would run it again at the wrong moment; not an actor, because that dies with the
kernel. The calls below return at once: the training thread is the only one that touches torch.distributed.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from rehearsal_kit.base.patience import Patience
from rehearsal_kit.base.process_groups import Meeting, join, leave
from rehearsal_kit.cluster.hosted_device import ON_CPU, HostedDevice, empty_device, end_process
from rehearsal_kit.cluster.protocol import CLOSING_TOPIC, HostStatus, Order
from rehearsal_kit.cluster.rank_device import LOCAL, device_of, identity_of
from rehearsal_kit.cluster.rank_failure import RankFailure, StepInForce
from rehearsal_kit.cluster.worker_variables import require_variables
from rehearsal_kit.learning.gpu_arithmetic import gpu_arithmetic
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.preview_files import Preview, Wanted
from rehearsal_kit.record.rank_records import Ended
from rehearsal_kit.record.records import Record, to_plain

PLUGIN = "rehearsal-kit"
CLOSING_S = 8.0
"""Without any progress for so long, ranks are not waited for that end because a worker of theirs closes."""
TELL_S = 2.0
"""What the scheduler has to hear of an error before the process ends in which it came."""
LEAVE_S = 0.3
"""What a rank on a GPU that was given up has to end by itself; then its process ends."""
POLL_S = 0.02
FIRST_S, LOOK_S = 1.0, 0.02
"""How long a preview is waited for that nobody has asked for before, and between two looks."""


@dataclass
class _Hosted:
    order: Order
    mailbox: queue.SimpleQueue[str]
    thread: threading.Thread
    device: HostedDevice = ON_CPU
    """Where it trains; a CPU as long as the other is not known to be there."""
    card: str = ""
    """What `HostedDevice.asked` has said."""
    rank: Rank | None = None
    """None before it has met the others, and when it has ended."""
    in_force: StepInForce | None = None
    outcome: str = ""
    failure: RankFailure | None = None
    given_up: bool = False
    """Whether another generation takes its place."""
    interrupted: bool = False
    """Whether its process, or that of another rank, is about to end."""
    regrouping: bool = False
    """Whether more ranks are to go on at the next end of a task."""
    _left: tuple[int, int] | None = None
    """Beats and step of a rank that was let go."""

    @property
    def training(self) -> bool:
        """Whether the rank has met the others."""
        return self.rank is not None or self._left is not None

    @property
    def beats(self) -> int:
        """`Rank.beats`; 0 before there is one."""
        return self._got_to()[0]

    @property
    def step(self) -> int:
        """`Rank.step`; 0 before there is one."""
        return self._got_to()[1]

    def let_go(self) -> None:
        """Keep nothing of the rank but how far it has got: weights and copies of them lie on the card."""
        if self.rank is not None:
            self._left = self._got_to()
        self.rank = None
        self.order = replace(self.order, spec=b"")  # as large as the network
        empty_device()

    def _got_to(self) -> tuple[int, int]:
        rank = self.rank  # the training thread may let it go meanwhile
        return (rank.beats, rank.step) if rank is not None else self._left or (0, 0)


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
            "rehearsal_kit_regroup": self.regroup,
        })  # fmt: skip

    def device(self, kind: str) -> HostedDevice:
        """Where a rank trains that was told to use "cpu" or "cuda"; no device is asked yet."""
        return HostedDevice.of("cpu" if kind == "cpu" else LOCAL)

    def leave_groups(self) -> None:
        """Destroy the process groups of a rank that has ended; on GPUs only where it has ended well."""
        leave()

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
        while hosted.thread.is_alive() and patience.lasts(hosted.beats):
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
        thread = threading.Thread(target=self._train, name=name, daemon=True)
        self._loop = asyncio.get_running_loop()
        hosted = _Hosted(wanted, mailbox, thread)
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
            rank = hosted.rank
            if rank is not None:
                rank.give_up()
            if hosted.device.crash_only:  # it may wait in a kernel of NCCL, which nothing but this ends
                asyncio.get_running_loop().call_later(LEAVE_S, self._leave_stuck, hosted)
        return ""

    async def interrupt(self, topic: str) -> str:
        """Have all ranks of this run end at their next step boundary; heard by rank 0."""
        hosted = self._hosted_of(topic)
        if hosted is not None:
            hosted.interrupted = True
            rank = hosted.rank
            if rank is not None:
                rank.interrupt()
        return ""

    async def regroup(self, topic: str, wanted: bool) -> str:
        """Whether all ranks of this run are to end at the next end of a task; heard by rank 0."""
        hosted = self._hosted_of(topic)
        if hosted is not None:
            hosted.regrouping = wanted
            rank = hosted.rank
            if rank is not None:
                rank.regroup(wanted)
        return ""

    async def status(self, topic: str) -> dict[str, Any]:
        """How the rank of this run is: a `HostStatus`."""
        hosted = self._hosted_of(topic)
        if hosted is None:
            alive = self._hosted is not None and self._hosted.thread.is_alive()
            return asdict(HostStatus(alive=alive or self._closing))
        status = HostStatus(
            generation=hosted.order.generation,
            alive=hosted.thread.is_alive() or self._closing,
            beats=hosted.beats,
            step=hosted.step,
            training=hosted.training,
            outcome=hosted.outcome,
        )
        if (failure := hosted.failure) is not None:
            status = replace(
                status,
                error=failure.error,
                fatal=failure.fatal,
                consequence=failure.consequence,
                failed_at=failure.failed_at,
                device=failure.device,
            )
        return asdict(status)

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
        try:
            outcome, weights = self._trained(hosted)
            self.leave_groups()
            hosted.let_go()
        except BaseException as failure:  # also a network that calls sys.exit(): nobody else would say so
            self._failed(hosted, failure)
        if hosted.failure is not None:
            # The others notice when the connections close, and they close with the last reference to them.
            hosted.let_go()
            self.leave_groups()
            return
        self._publish(self._end_of(hosted, outcome, weights=weights))
        hosted.outcome = outcome

    def _trained(self, hosted: _Hosted) -> tuple[str, str]:
        """How the rank has ended, and the fingerprint of its weights; raises what it has failed with."""
        order = hosted.order
        require_variables()
        device_of(order.device)  # raises where it was told to use one that is not there
        hosted.device = self.device(order.device)
        spec: RunSpec = pickle.loads(order.spec)  # noqa: S301 - from the kernel that runs this cluster
        hosted.in_force = StepInForce.of(spec)
        device = hosted.device.name
        with gpu_arithmetic(device, deterministic=spec.training.deterministic):  # before it is used at all
            hosted.card = hosted.device.asked()
            rank = hosted.rank = Rank(
                replace(spec, device=device),
                join(self._meeting(order, device)),
                mailbox=hosted.mailbox,
                publish=self._publish,
                generation=order.generation,
                lease=order.lease,
            )
            if hosted.given_up:  # while it was read
                rank.give_up()
            if hosted.interrupted:
                rank.interrupt()
            rank.regroup(hosted.regrouping)
            return rank.run(lambda failure: self._failed(hosted, failure)), rank.fingerprint()

    def _meeting(self, order: Order, device: str) -> Meeting:
        return Meeting(
            rendezvous=Path(order.rendezvous),
            nonce=order.nonce,
            rank=order.rank,
            ranks=order.ranks,
            timeout_s=order.timeout_s,
            device=device,
            gpu=identity_of(device),
            share_gpus=order.shared_gpus,
            address=get_address_host(self._worker.contact_address or self._worker.address),
        )

    def _failed(self, hosted: _Hosted, error: BaseException) -> None:
        """Record and tell an error before anything is waited for, once; on GPUs the process then ends.

        Threads that write, groups and devices may never come to an end where ranks have failed: then nobody
        would hear of more than that there is no progress.
        """
        if hosted.outcome:
            return
        if hosted.rank is not None and hosted.in_force is not None:
            hosted.in_force = replace(hosted.in_force, **hosted.rank.in_force())
        failure = RankFailure.of(error, card=hosted.card, in_force=hosted.in_force)
        hosted.failure, hosted.outcome = failure, "failed"
        ended, ends = self._end_of(hosted, "failed"), hosted.device.crash_only or failure.sticky
        if ends:
            # One that is answered: what Dask sends by itself may still lie here when the process ends.
            told = asyncio.run_coroutine_threadsafe(self._told(ended), self._loop)
            with contextlib.suppress(Exception):  # the coordinator sees then that the process has ended
                told.result(TELL_S)
        else:
            self._publish(ended)
        traceback.print_exception(error)
        if ends:
            end_process(f"rank {hosted.order.rank} has failed; another process takes its place.")

    def _end_of(self, hosted: _Hosted, outcome: str, *, weights: str = "") -> Ended:
        failure = hosted.failure
        return Ended(
            rank=hosted.order.rank,
            step=hosted.step,
            outcome=outcome,
            error="" if failure is None else failure.error,
            time=time.time() if failure is None else failure.failed_at,
            generation=hosted.order.generation,
            weights=weights,
            fatal=failure is not None and failure.fatal,
            consequence=failure is not None and failure.consequence,
            device="" if failure is None else failure.device,
        )

    async def _told(self, record: Record) -> None:
        assert self._hosted is not None  # noqa: S101 - only the training thread asks for it
        message = {"told": to_plain(record), "line": None}
        await self._worker.scheduler.log_event(topic=self._hosted.order.topic, msg=message)

    def _leave_stuck(self, hosted: _Hosted) -> None:
        if hosted.thread.is_alive() and self._hosted is hosted:
            end_process(f"rank {hosted.order.rank} was given up, and waits for others that are gone.")

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
