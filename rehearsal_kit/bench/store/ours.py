"""The rehearsal buffer of this package as a contestant: its local store, and the whole of it on one rank."""

from __future__ import annotations

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.randomness import Rekeyed
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.bench.store.workload import Contestant, TaskStream, Workload, both, portions
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.draw_plan import plan_draw
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.policies import PolicyState, new_policy
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.store import Contents, LocalStore

SEED = 0
GROUPS = 4
"""Tasks in the store; each mini-batch belongs to one of them."""


class OurStore:
    """A `LocalStore` as one rank's background job uses it, without the hand-over.

    stream: default one of its own; some policies, such as the reservoir, need samples with numbers.
    """

    def __init__(self, workload: Workload, policy: str, *, stream: TaskStream | None = None) -> None:
        self._workload = workload
        chosen = new_policy(policy, SEED)
        self._stream = stream or TaskStream(workload, identified=chosen.needs_identity)
        self._layout = RowLayout.of(self._stream.next(0))
        self._store = LocalStore(self._layout, workload.capacity, policy=chosen)
        self._choosing, self._storing = Rekeyed(SEED, "candidates"), Rekeyed(SEED, "store")
        self._drawing = Rekeyed(SEED, "draw")
        self._updates = self._draws = 0
        self._kept: tuple[Contents, PolicyState] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes per sample as stored, its number included."""
        return self._layout.row_bytes

    @property
    def held(self) -> int:
        """Samples in the store."""
        return len(self._store)

    def fill(self) -> OurStore:
        """Offer as many distinct samples as the capacity, all of which are kept."""
        for count in portions(self._workload.capacity, self._workload.batch):
            self._offer(count)
        return self

    def see(self, samples: int) -> OurStore:
        """Go on until so many samples have been seen."""
        while self._stream.seen < samples:
            self.update()
        return self

    def update(self) -> None:
        """Choose candidates of the next mini-batch and store them."""
        self._offer(None)

    def draw(self) -> dict[str, torch.Tensor]:
        """Plan a draw for one rank and carry it out: named tensors (drawn, ...)."""
        self._draws += 1
        random = self._drawing.at(0, self._draws)
        rows, _ = plan_draw([len(self._store)], [self._workload.representatives], random).sent_by(0)
        return self._layout.unpack(self._store.gather(rows))

    def step(self) -> None:
        """Update, then draw."""
        self.update()
        self.draw()

    def keep(self) -> OurStore:
        """Remember what is stored now, for `go_back`."""
        held = self._store.contents
        self._kept = Contents(held.rows[:].copy(), held.groups, held.places), self._store.policy.state()
        return self

    def go_back(self) -> None:
        """Hold again what was remembered; the stream goes on with new samples."""
        if self._kept is not None:
            contents, state = self._kept
            policy = new_policy(self._store.policy.name, SEED)
            self._store = LocalStore(self._layout, self._workload.capacity, policy=policy)
            self._store.fill(contents, state=state)

    def contestant(self) -> Contestant:
        """The store as one of those that are measured."""
        return Contestant(both(self.update, self.draw), reset=self.go_back)

    def _offer(self, count: int | None) -> None:
        self._updates += 1
        samples = self._stream.next(count)
        identities = self._layout.identities(samples)
        chosen = self._store.policy.candidates(
            self._layout.check(samples) if identities is None else identities,
            count=self._workload.candidates,
            intake=self._store.intake,
            random=self._choosing.at(0, self._updates),
        )
        groups = [self._updates % GROUPS] * len(chosen)
        random = self._storing.at(0, self._updates)
        self._store.offer(samples, groups, random=random, chosen=chosen)


class WholeBuffer:
    """A `DistributedBuffer` alone in its process: checks, hand-over, background thread and all."""

    def __init__(self, workload: Workload) -> None:
        self._stream = TaskStream(workload)
        rehearsal = Rehearsal(
            representatives=workload.representatives,
            candidates=workload.candidates,
            capacity=workload.capacity,
        )
        self._buffer = DistributedBuffer(
            RowLayout.of(self._stream.next(0)),
            rehearsal,
            seed=SEED,
            exchange=GroupExchange(ProcessGroups(rank=0, ranks=1)),
        )
        self._steps = 0
        for count in portions(workload.capacity, workload.batch):
            self._step(count)

    def step(self) -> None:
        """What a training loop calls at every step: `advance`, then `offer`."""
        self._step(None)

    def contestant(self) -> Contestant:
        """The buffer as one of those that are measured."""
        return Contestant({"both": self.step}, settle=self._settle, close=self._buffer.close)

    def _step(self, count: int | None) -> None:
        self._buffer.advance()
        self._buffer.offer(self._stream.next(count), group=self._steps % GROUPS)
        self._steps += 1

    def _settle(self) -> None:
        self._buffer.state()  # waits for the job in flight
