"""What makes a Dask worker host a rank: a plugin with a training thread of its own.

Not a task, because Dask would run it again at the wrong moment; not an actor, because that dies with the
kernel. The calls below return at once: the training thread is the only one that touches torch.distributed.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from dataclasses import dataclass, replace
from typing import Any

import torch
from distributed import Worker
from distributed.diagnostics.plugin import WorkerPlugin

from rehearsal_kit.commands import Stop, Wish
from rehearsal_kit.errors import ClusterError
from rehearsal_kit.groups import Meeting, meet
from rehearsal_kit.job import Job
from rehearsal_kit.preview import Preview
from rehearsal_kit.rank import Rank
from rehearsal_kit.telemetry import Ended, Record, to_plain

PLUGIN = "rehearsal-kit"
TOPIC_PREFIX = "rehearsal-kit/"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a host is told to start."""

    topic: str
    """Where its records go; also names the run on this cluster."""
    job: Job
    meeting: Meeting


@dataclass
class _Hosted:
    order: Order
    mailbox: queue.SimpleQueue[str]
    thread: threading.Thread
    rank: Rank | None = None


class RankHost(WorkerPlugin):
    """Hosts at most one rank at a time. Installing it again leaves a running rank alone."""

    name = PLUGIN
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Called by Dask when the plugin arrives on a worker."""
        self._worker = worker
        self._hosted: _Hosted | None = None

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the worker closes: rank 0 has all ranks stop at their next step."""
        if self._hosted is not None and self._hosted.thread.is_alive():
            self._hosted.mailbox.put(Wish(0, Stop()).to_json())
            self._hosted.thread.join(timeout=5)

    def start(self, order: Order) -> None:
        """Begin a rank in a thread of its own; ClusterError while another run has one here."""
        live = self._hosted
        if live is not None and live.thread.is_alive():
            raise ClusterError(
                f"worker {self._worker.name} still trains for {live.order.job.run.path}; "
                "close that session first, or start a second cluster."
            )
        name = f"train-r{order.meeting.rank}"
        mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        thread = threading.Thread(target=self._train, name=name, daemon=True)
        self._hosted = _Hosted(order, mailbox, thread)
        thread.start()

    def post(self, topic: str, wishes: list[str]) -> None:
        """Put wishes (JSON) into the mailbox; rank 0 takes them out at its next step boundary."""
        for wish in wishes:
            self._of(topic).mailbox.put(wish)

    def preview(self, topic: str, task: int | None) -> Preview | None:
        """The newest preview of a task, and from now on keep that one fresh; None: the newest task."""
        rank = self._of(topic).rank
        if rank is None:
            return None
        rank.gallery.wanted = task
        chosen = max(rank.gallery.newest, default=-1) if task is None else task
        return rank.gallery.newest.get(chosen)

    def _of(self, topic: str) -> _Hosted:
        if self._hosted is None or self._hosted.order.topic != topic:
            raise ClusterError(f"worker {self._worker.name} has no rank of this run; was it restarted?")
        return self._hosted

    def _train(self) -> None:
        hosted = self._hosted
        assert hosted is not None  # noqa: S101 - start() has set it before this thread began
        outcome, error, step = "failed", "", 0
        try:
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
            with meet(replace(hosted.order.meeting, device=device)) as groups:
                job = replace(hosted.order.job, device=device)
                hosted.rank = Rank(job, groups, mailbox=hosted.mailbox, publish=self._publish)
                outcome = hosted.rank.run()
        except Exception as failure:
            where = traceback.extract_tb(failure.__traceback__)[-1]
            error = f"{type(failure).__name__}: {failure} ({where.name}, {where.filename}:{where.lineno})"
            traceback.print_exception(failure)
        if hosted.rank is not None:
            step = hosted.rank.step
        rank = hosted.order.meeting.rank
        self._publish(Ended(rank=rank, step=step, outcome=outcome, error=error, time=time.time()))

    def _publish(self, record: Record) -> None:
        hosted = self._hosted
        assert hosted is not None  # noqa: S101 - only the training thread publishes
        # Wrapped, because Dask adds a key of its own to the dictionaries it passes on.
        self._worker.log_event(hosted.order.topic, {"told": to_plain(record)})


async def dask_setup(worker: Worker) -> None:
    """Called by Dask because this module is preloaded: import now what the first step would import."""
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


# Called through client.run, which passes the worker as `dask_worker`; all of them return at once.


async def start_rank(order: Order, dask_worker: Worker) -> None:
    """Start the rank of this order on its worker."""
    _host(dask_worker).start(order)


async def post_wishes(topic: str, wishes: list[str], dask_worker: Worker) -> None:
    """Put wishes into the mailbox of rank 0."""
    _host(dask_worker).post(topic, wishes)


async def get_preview(topic: str, task: int | None, dask_worker: Worker) -> Preview | None:
    """Fetch a preview from rank 0."""
    return _host(dask_worker).preview(topic, task)


def _host(worker: Any) -> RankHost:
    host = worker.plugins[PLUGIN]
    assert isinstance(host, RankHost)  # noqa: S101 - the name is ours
    return host
