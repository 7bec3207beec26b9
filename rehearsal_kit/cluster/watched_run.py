"""A run as the coordinator knows it: what it may write to, which ranks it has now, and how far it has got."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field

from rehearsal_kit.base.files import write_private
from rehearsal_kit.cluster.acceptance import Acceptance
from rehearsal_kit.cluster.protocol import RunOrder
from rehearsal_kit.record.lease import RunLease
from rehearsal_kit.record.ledger import Ledger
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
    known: set[str] = field(default_factory=set)
    """Kernels of which is written down that they have steered."""
    lost: str = ""
    """How the lease was lost, if it was: then nothing more is written to the folder."""
    workers: list[str] = field(default_factory=list)
    """Addresses in order of rank, of the generation under way."""
    names: set[str] = field(default_factory=set)
    """Names of the workers that it had so far."""
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
            )
            undone.pop_all()
        return run

    def close(self) -> None:
        """Write nothing more, and let others."""
        self.acceptance.close()
        self.ledger.close()
        self.lease.release()
