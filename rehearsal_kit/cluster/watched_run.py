"""A run as the coordinator knows it: what it may write to, which ranks it has now, and how far it has got."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from rehearsal_kit.base.files import write_private
from rehearsal_kit.cluster.acceptance import Acceptance
from rehearsal_kit.cluster.protocol import HostStatus, Order, RunOrder
from rehearsal_kit.cluster.returned_workers import ReturnedWorkers
from rehearsal_kit.cluster.watchdog import GenerationError
from rehearsal_kit.cluster.worker_pool import Wanted
from rehearsal_kit.record.lease import RunLease
from rehearsal_kit.record.ledger import Ledger
from rehearsal_kit.record.rank_records import Ended
from rehearsal_kit.record.records import Record
from rehearsal_kit.record.run_folder import RunFolder


@dataclass
class WatchedRun:
    """One run on the scheduler's side, from its beginning to its end."""

    order: RunOrder
    folder: RunFolder
    lease: RunLease
    acceptance: Acceptance
    ledger: Ledger
    generation: int
    ranks: int
    """How many the next generation is to have: as many as were started, or as the last one had, and those
    that have come back."""
    returned: ReturnedWorkers
    more: int = 0
    """Workers for which rank 0 was asked to end at the next end of a task."""
    known: set[str] = field(default_factory=set)
    """Kernels of which is written down that they have steered."""
    lost: str = ""
    """How the lease was lost, if it was: then nothing more is written to the folder."""
    workers: list[str] = field(default_factory=list)
    """Addresses in order of rank, of the generation under way."""
    names: Sequence[str] = ()
    """Names of the workers that it had last, in order of rank."""
    before: Sequence[str] = ()
    """Names of those it had before others were taken, until it has got further with these."""
    avoided: Set[str] = frozenset()
    """Names of those with which it has not got any further than without them, until they are tried again."""
    ended: dict[int, Ended] = field(default_factory=dict)
    """What ranks of the generation under way have told of their ends: their processes may be gone since."""
    suspect: str = ""
    """The card that failed in the last generation, if it was one."""
    restarts: int = 0
    """Restarts in a row: since the run has last got further than ever before."""
    taken: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Branch and step of checkpoints, by number."""
    furthest: tuple[int, int] = (0, 0)
    """Branch and step of the last checkpoint that is whole on disk."""
    outcome: str = ""
    ending: bool = False
    """Whether its cluster ends: an interrupted set of ranks is not started again."""
    interrupting: asyncio.Future[None] | None = None
    """Kept so that it is not collected before it is done."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    delivery: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Wishes reach rank 0 in the order in which they were accepted: one message at a time."""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @staticmethod
    def begun(order: RunOrder, holder: str) -> WatchedRun:
        """Take the lease on the folder and open what is written there; LeaseError, OSError."""
        folder = RunFolder(order.run)
        with contextlib.ExitStack() as undone:
            lease = RunLease.take(folder, place=order.place)
            undone.callback(lease.release)
            write_private(folder.cluster, json.dumps(order.place))
            acceptance = Acceptance(folder, holder)
            undone.callback(acceptance.close)
            run = WatchedRun(
                order=order,
                folder=folder,
                lease=lease,
                acceptance=acceptance,
                ledger=Ledger(folder.generations, durable=True),
                generation=lease.generation - 1,
                ranks=order.ranks,
                returned=ReturnedWorkers(order.recovery.wait_s),
            )
            undone.pop_all()
        return run

    @property
    def reduced(self) -> bool:
        """Whether the generation under way has fewer ranks than the run was started with."""
        return len(self.workers) < self.order.ranks

    @property
    def wanted(self) -> Wanted:
        """Which workers the next generation is to have."""
        return Wanted(self.ranks, frozenset(self.names), self.avoided)

    def assembled(self, workers: list[str], names: Sequence[str]) -> None:
        """These become the ranks of the next generation."""
        if len(workers) < self.ranks:
            self.returned.lose()
        self.before = self.names if len(workers) > len(self.names) else ()
        self.workers, self.names, self.ranks, self.more = workers, names, len(workers), 0

    def regrouped(self) -> str:
        """The ranks have ended after a task, so that more go on; what is said of it."""
        self.ranks, self.avoided = min(self.order.ranks, len(self.workers) + self.more), frozenset()
        if not self.more:
            return "a worker that had come back is gone again; the ranks go on after the task that has ended."
        return (
            f"a worker has come back: from the task that has ended the run goes on with {self.ranks} of "
            f"{self.order.ranks} workers."
        )

    def orders(self, rendezvous: Path, nonce: str) -> list[Order]:
        """What the hosts of the next generation are told, in order of rank."""
        return [
            Order(
                topic=self.order.topic,
                spec=self.order.spec,
                run=self.order.run,
                generation=self.generation,
                rank=rank,
                ranks=len(self.workers),
                rendezvous=str(rendezvous),
                nonce=nonce,
                lease=self.lease.token,
                timeout_s=self.order.recovery.stall_s + 60.0,  # the progress watch comes first
                device=self.order.device,
                shared_gpus=self.order.shared_gpus,
            )
            for rank in range(len(self.workers))
        ]

    def hear(self, record: Record) -> None:
        """A rank has told of its end."""
        if isinstance(record, Ended) and record.generation == self.generation:
            self.ended[record.rank] = record

    def told(self, statuses: Sequence[HostStatus | None]) -> list[HostStatus | None]:
        """These statuses, in order of rank; where a host cannot say it any more, what its rank has told."""
        return [self._of(rank, status) for rank, status in enumerate(statuses)]

    def _of(self, rank: int, status: HostStatus | None) -> HostStatus | None:
        ended = self.ended.get(rank)
        here = status is not None and status.generation == self.generation
        if ended is None or ended.outcome != "failed" or here:
            return status
        return HostStatus(
            alive=False,
            generation=ended.generation,
            training=True,
            step=ended.step,
            outcome=ended.outcome,
            error=ended.error,
            fatal=ended.fatal,
            consequence=ended.consequence,
            failed_at=ended.time,
            device=ended.device,
        )

    def got_to(self, checkpoint: tuple[int, int]) -> None:
        """A checkpoint at this branch and step is whole on disk."""
        # Not for one that is written again where the ranks failed: they would do so for ever.
        if checkpoint > self.furthest:
            self.furthest, self.restarts, self.before = checkpoint, 0, ()

    def failed(self, error: GenerationError) -> tuple[str, bool]:
        """Why a generation has ended, in words, and whether the next one would end in the same way.

        Where other workers were taken, and it has not got further since, the next one has those from before,
        unless it is one of these that has failed: what fails on a worker that has come back must not end a
        run that went well without it.
        """
        again, self.suspect = bool(error.device) and error.device == self.suspect, error.device
        words = f"{error}; {twice(error.device)}" if again else str(error)
        before, self.before = self.before, ()
        old = error.rank is not None and self.names[error.rank] in before
        if not before or old or self.lost:
            return words, error.fatal
        self.avoided = frozenset(self.names) - frozenset(before)
        self.names, self.ranks = before, len(before)
        # It counts for nothing: as long as no task comes there is no newer checkpoint, and it is tried again.
        self.restarts -= 1
        self.returned.lose()
        return f"{words.rstrip('.')}; the run goes on with the {self.ranks} that it had before.", False

    def close(self) -> None:
        """Write nothing more, and let others."""
        self.acceptance.close()
        self.ledger.close()
        self.lease.release()


def twice(device: str) -> str:
    """What is said of a card that has failed in two generations in a row."""
    return (
        f"{device} has failed twice in a row: look at `nvidia-smi -q -d ECC` and `dmesg | grep Xid` on its "
        "machine. To go on without it, end this cluster, and start one with the other cards only: "
        "CUDA_VISIBLE_DEVICES=<their UUIDs, as `nvidia-smi -L` shows them>."
    )
