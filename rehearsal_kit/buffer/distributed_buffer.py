"""The distributed rehearsal buffer: take what was drawn, hand over the offer, one background job per step.

Method: Bouvier et al., "Efficient Distributed Continual Learning for Steering Experiments in Real-Time",
Future Generation Computer Systems 162 (2025) 107438: while step t trains, the background thread stores what
step t-1 offered and draws the representatives of step t+1 from the buffers of all ranks.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.plain_values import plain_value
from rehearsal_kit.base.process_groups import groups_of_world
from rehearsal_kit.base.randomness import Rekeyed
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.background_job import BackgroundJob, lost_connections
from rehearsal_kit.buffer.exchange import Exchange, GroupExchange, require_agreement
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.job_thread import Job, JobThread
from rehearsal_kit.buffer.memory_limit import (
    available_bytes,
    for_changed_rows,
    require_fitting,
    require_room,
    share_of,
)
from rehearsal_kit.buffer.policies import new_policy
from rehearsal_kit.buffer.row_layout import IDENTITY, RowLayout, Samples
from rehearsal_kit.buffer.row_losses import NOTHING, Replayed
from rehearsal_kit.buffer.row_placement import DeviceRoom, RowPlacement
from rehearsal_kit.buffer.row_transport import RowTransport
from rehearsal_kit.buffer.snapshots import read_shards, write_shard
from rehearsal_kit.buffer.staging import Staging, UnderWay
from rehearsal_kit.buffer.states import BufferState, Drawn, Pending, Representatives, Round, Staged, steered
from rehearsal_kit.buffer.store import Contents, LocalStore, require_identity

Group = int | Sequence[int] | torch.Tensor
"""One group for all samples of a mini-batch, or one for each: (sample,)."""


@dataclass(frozen=True)
class BufferDevice:
    """The device that trains, and what room it has for the rows of a buffer."""

    name: str
    room: DeviceRoom | None = None
    """None: rows lie in host memory, and are exchanged between hosts. None on all ranks or on none of them;
    what room there is, each finds for itself."""


class DistributedBuffer:
    """The union of the buffers of all ranks, as one rank sees it. Used from one training thread.

    Every step calls `advance`, then trains, then calls `offer`; or `augment` alone, where nothing that the
    step computes is stored. All ranks take the same number of steps, also those with an empty mini-batch.
    The draw depends on the seed, the step and what was offered, never on timing.

    layout: of the samples, the same on all ranks. exchange: how the ranks meet. device: where
    representatives are wanted, and rows may lie. All ranks construct it at the same point; SettingsError on
    all of them if they disagree about layout, settings or seed, or if the buffers do not fit into memory.
    """

    def __init__(
        self,
        layout: RowLayout,
        rehearsal: Rehearsal,
        *,
        seed: int,
        exchange: Exchange,
        device: str | BufferDevice = "cpu",
    ) -> None:
        self.waited = 0.0
        """Seconds that this thread has waited for the background thread, since the beginning."""
        self.worked = 0.0
        """Seconds that finished background jobs took: what was not waited for was hidden behind training."""
        self.placed: tuple[int, ...] = ()
        """Where the rows of each rank lay after its last job, as `row_placement` numbers it."""
        self.share_bytes = 0
        """That the rows of this rank might take then."""
        self.layout = layout
        self._seed = seed = plain_value(seed)
        self._rehearsal = rehearsal
        self._exchange = exchange
        if {field.name for field in layout.fields if field.half} != set(rehearsal.half):
            raise SettingsError(
                f"the settings store {list(rehearsal.half)} as float16, but the layout is "
                f"{', '.join(map(str, layout.fields))}; make it by RowLayout.of(samples, half=settings.half)."
            )
        device = BufferDevice(device) if isinstance(device, str) else device
        self._staging = Staging(layout, device.name)
        # Between ranks that share a GPU rows would pass the hosts anyhow.
        room = device.room if exchange.ranks == 1 or exchange.carries(torch.device(device.name)) else None
        require_agreement((layout, rehearsal, seed, *[True] * (room is not None)), exchange)
        capacity = rehearsal.samples(layout.row_bytes)
        share = share_of(capacity, exchange.rank, exchange.ranks)
        self._ranks_here = require_room(share * layout.row_bytes, exchange)
        self._store = LocalStore(
            layout,
            share,
            policy=new_policy(rehearsal.policy, seed),
            removal=rehearsal.removal,
            placement=RowPlacement(layout, beside=self._staging.beside, room=room),
        )
        self._policy = new_policy(rehearsal.policy, seed)
        """Chooses candidates here while that of the store is with the background thread."""
        self._transport = RowTransport(
            layout, exchange, staging=self._staging, with_gradients=room is not None
        )
        self._background_job = BackgroundJob(
            self._store, rehearsal, seed=seed, exchange=exchange, transport=self._transport
        )
        self._candidates = Rekeyed(seed, "candidates")
        self._thread = JobThread(f"rehearsal-r{exchange.rank}")
        self._in_flight: Job[Staged] | None = None
        self._pending: Pending | None = None
        self._taken: Rows | None = None
        """`sample_id` of each representative of this step, where their losses are asked for."""
        self._intake = self._store.intake
        self._lies_there = False
        self._step = -1

    @staticmethod
    def over_world(
        samples: Samples, rehearsal: Rehearsal, *, seed: int, device: str = "cpu", timeout_s: float = 600.0
    ) -> DistributedBuffer:
        """A buffer for a plain loop under torchrun, or in one process: beside the process group there is.

        samples: a mini-batch, for its names, shapes and dtypes; it may be empty. timeout_s: how long ranks
        wait for each other at a step, so longer than what one of them does alone, such as evaluating.
        """
        exchange = GroupExchange(groups_of_world(timeout_s))
        layout = RowLayout.of(samples, half=rehearsal.half)
        return DistributedBuffer(layout, rehearsal, seed=seed, exchange=exchange, device=device)

    def __enter__(self) -> DistributedBuffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def augment(self, samples: Samples, *, group: Group = 0) -> dict[str, torch.Tensor]:
        """One step of experience replay: these samples, copied, and the representatives; offers them.

        The first mini-batch comes back without any. group: task or class of the samples. SettingsError with
        loss-aware removal, whose losses are known only after the step.
        """
        if self._rehearsal.removal == "loss":
            raise SettingsError(
                "removal is 'loss', but augment() offers samples before any loss is known; call advance(), "
                "train, then offer(samples, group=..., losses=...), or take removal='random'."
            )
        drawn = self.advance()
        self._hand_over(samples, group, None, copy=True)
        if drawn is None:
            return {name: tensor.clone() for name, tensor in samples.items()}
        return {name: torch.cat([t, drawn.samples[name].to(t.device)]) for name, t in samples.items()}

    def advance(self, work: Round | None = None) -> Representatives | None:
        """Take the representatives of this step, and begin the work for the next one.

        work: default is the next step with the numbers of the settings. None comes at the first step, which
        is not augmented. Fewer than asked for come only while all ranks together hold fewer that may be
        drawn. RankError if another rank failed or disagrees; raises what the background thread raised.
        """
        if work is None:
            settings = self._rehearsal
            work = Round(
                step=self._step + 1,
                representatives=settings.representatives,
                distillation=settings.distillation,
            )
        rehearsal = steered(self._rehearsal, work)
        staged = self._finished_job()
        drawn = staged.take() if staged is not None else None
        self._step = work.step
        self._taken = self._identities_of(drawn)
        pending, self._pending = self._pending, None
        if work.policy is not None and work.policy != self._rehearsal.policy:
            self._policy = new_policy(work.policy, self._seed)
        self._rehearsal = rehearsal
        self._in_flight = self._thread.submit(self._background_job.work, work, pending)
        return drawn

    def offer(
        self, samples: Samples, *, group: Group, losses: torch.Tensor | None = None, copy: bool = True
    ) -> None:
        """Hand over the mini-batch of this step; what may be stored of it is copied before this returns.

        copy: False where nobody will write to these tensors any more: the background thread then copies what
        it stores of them, and finds what is not finite, as for samples on CUDA in any case. Of these the
        group, and the `sample_id` that some policies read, are best left in host memory: else this waits.
        losses: of the representatives that the last `advance` gave, (drawn,), for loss-aware removal, which
        alone asks for them; None where this step had none. SettingsError, with nothing handed over, if names,
        shapes or dtypes are wrong or a value is not finite; what is found later, the next `advance` raises.
        Where rows are exchanged between devices, that begins here, on all ranks, and errors of the background
        thread come here.
        """
        self._begin_exchange()
        self._hand_over(samples, group, losses, copy=copy)

    def _hand_over(self, samples: Samples, group: Group, losses: torch.Tensor | None, *, copy: bool) -> None:
        count = self.layout.check(samples)
        identities = self.layout.identities(samples) if self._policy.needs_identity else None
        chosen = self._policy.candidates(
            count if identities is None else identities,
            count=self._rehearsal.candidates,
            intake=self._intake,
            random=self._candidates.at(self._exchange.rank, self._step),
        )
        groups, newest = _groups_of(group, count, chosen)
        learned = self._learned(losses)
        hand_over = self._staging.hand_over_there if self._lies_there else self._staging.hand_over
        rows = hand_over(samples, chosen, copy=copy)
        self._pending = Pending(rows, groups, newest, learned)

    def require_possible(self, rehearsal: Rehearsal) -> None:
        """SettingsError if the buffers could not take the policy and the capacity of these settings now."""
        require_identity(new_policy(rehearsal.policy, self._seed), self.layout, removal=rehearsal.removal)
        capacity = rehearsal.samples(self.layout.row_bytes)
        share = share_of(capacity, self._exchange.rank, self._exchange.ranks)
        if share > self._store.capacity:  # old and new rows exist side by side for a moment
            require_fitting(share * self.layout.row_bytes * self._ranks_here, available_bytes())

    def state(self) -> BufferState:
        """Everything that decides what later steps draw, for a snapshot; valid until the next `advance`.

        Waits for the job in flight, and for what it has drawn: where rows are exchanged between devices, all
        ranks call it at the same point. If that failed because another rank did, what it drew is left out.
        """
        return self._state(self._drawn(), self._store.contents)

    def frozen(self) -> BufferState:
        """The same as `state`, but to be written by another thread during later steps; `release` it then.

        The rows are not copied, except those that change before they were written.
        """
        drawn = self._drawn()  # first: the job under way changes the store
        free = for_changed_rows(available_bytes(), ranks=self._ranks_here)
        return self._state(drawn, self._store.freeze(free=free)).frozen()

    def restore(self, state: BufferState) -> None:
        """Go on where that state was taken; before the first `advance`, on all ranks at the same point.

        SettingsError if it has another layout, or does not fit.
        """
        came = (state.policy, state.seed, state.layout)
        if self._step >= 0 or came != (self._rehearsal.policy, self._seed, self.layout):
            raise SettingsError(
                f"a state of policy {state.policy}, seed {state.seed} and fields "
                f"{', '.join(map(str, state.layout.fields))} cannot be restored into a buffer of policy "
                f"{self._rehearsal.policy}, seed {self._seed} and fields "
                f"{', '.join(map(str, self.layout.fields))} that has begun step {self._step}; they must be "
                "the same, and the first step not begun."
            )
        self._background_job.resize(state.capacity, step=state.step)
        self._store.fill(state.contents, state=state.policy_state)
        self._step, self._intake, self._pending = state.step, self._store.intake, state.pending
        if state.drawn is not None:
            rows = state.drawn.rows.clone()
            self._in_flight = Job.done(Staged(state.drawn, self._staging.deliver(rows)))

    def save(self, folder: str | Path) -> None:
        """Write this rank's part, and what is on its way, into a folder that all ranks share.

        Between `offer` and `advance` of the same step on all ranks; the next `advance` goes on as ever.
        """
        write_shard(Path(folder), self.state(), rank=self._exchange.rank, ranks=self._exchange.ranks)

    def load(self, folder: str | Path, *, partial: bool = False) -> None:
        """Go on where `save` was called, on as many ranks or on another number; before the first `advance`.

        partial: without the samples of shards that are missing, which a warning counts. SnapshotError if
        the folder holds no whole snapshot.
        """
        rank, ranks = self._exchange.rank, self._exchange.ranks
        self.restore(read_shards(Path(folder), rank=rank, ranks=ranks, partial=partial))

    def close(self) -> None:
        """Wait for the job in flight, which every other rank has begun too, and end the thread."""
        try:
            if self._in_flight is not None:
                on_its_way = self._in_flight.result().on_its_way
                if isinstance(on_its_way, UnderWay):
                    with lost_connections(self._exchange.rank, self._step):
                        on_its_way.settle()
        finally:
            self._thread.join()

    def abandon(self) -> None:
        """End the thread without asking what became of its job: for a rank that has failed already."""
        self._thread.end()

    def _identities_of(self, drawn: Representatives | None) -> Rows | None:
        if drawn is None or self._rehearsal.removal != "loss" or not self.layout.has_identity:
            return None
        return drawn.numbers[0][IDENTITY].numpy()

    def _learned(self, losses: torch.Tensor | None) -> Callable[[], Replayed]:
        if losses is not None and not isinstance(losses, torch.Tensor):
            raise SettingsError(
                f"losses came as {type(losses).__name__}; give a tensor, (drawn,), with the loss of each "
                "representative that advance() returned, or None where there was none."
            )
        if losses is None or self._rehearsal.removal != "loss":
            return lambda: NOTHING
        drawn = 0 if self._taken is None else len(self._taken)
        if tuple(losses.shape) != (drawn,):
            raise SettingsError(
                f"losses came as {tuple(losses.shape)} for {drawn} representatives; give the loss of each, "
                "in the order of what advance() returned, or None where there was none."
            )
        if self._taken is None:
            return lambda: NOTHING
        # On a GPU they are numbers of the step under way: whoever stores the mini-batch waits for them.
        of, numbers = self._taken, self._staging.fetched(losses.detach().double())
        return functools.cache(lambda: Replayed.of(of, numbers().numpy()))

    def _finished_job(self) -> Staged | None:
        if self._in_flight is None:
            return None
        staged = self._waited_for(self._in_flight)
        if self._transport.with_gradients:
            with lost_connections(self._exchange.rank, self._step):
                staged.on_its_way.arrived()
        self.worked += staged.seconds
        # No job is under way: what is known here depends on no timing.
        self._intake, self._lies_there = self._store.intake, self._store.there is not None
        self.placed, self.share_bytes = staged.placed, self._store.capacity * self.layout.row_bytes
        return staged

    def _begin_exchange(self) -> None:
        """Begin the exchange between devices of what this step has drawn, unless that was done."""
        if self._in_flight is not None and self._transport.with_gradients:
            staged = self._waited_for(self._in_flight)
            with lost_connections(self._exchange.rank, self._step):
                staged.on_its_way.begin()

    def _waited_for(self, job: Job[Staged]) -> Staged:
        began = time.perf_counter()
        staged = job.result()
        self.waited += time.perf_counter() - began
        return staged

    def _drawn(self) -> Drawn | None:
        """What the job in flight has drawn, once it is done."""
        with contextlib.suppress(RankError):
            if self._in_flight is not None:
                return self._in_host(self._in_flight.result())
        return None

    def _state(self, drawn: Drawn | None, contents: Contents) -> BufferState:
        return BufferState(
            layout=self.layout,
            policy=self._rehearsal.policy,
            seed=self._seed,
            capacity=self._background_job.capacity,
            contents=contents,
            policy_state=self._store.policy.state(),
            step=self._step,
            pending=self._pending,
            drawn=drawn,
        )

    def _in_host(self, staged: Staged) -> Drawn:
        """What a job has drawn, in host memory."""
        with lost_connections(self._exchange.rank, self._step):
            rows = self._staging.in_host(staged.on_its_way.arrived())
        return Drawn(staged.drawn.owners, staged.drawn.second, staged.drawn.stored, rows)


def _groups_of(group: Group, count: int, chosen: Rows) -> tuple[list[int], list[int]]:
    """The group of each of the chosen samples among so many, and all groups of those, in order."""
    group = plain_value(group)
    if isinstance(group, int):
        return [group] * len(chosen), [group] if count else []
    groups = np.asarray(group.cpu() if isinstance(group, torch.Tensor) else group)
    if groups.shape != (count,) or (count and groups.dtype.kind not in "iu"):
        raise SettingsError(
            f"group came as {groups.dtype} {groups.shape} for {count} samples; give one whole number, or one "
            "for each sample."
        )
    groups = groups.astype(np.int64)
    return groups[chosen].tolist(), np.unique(groups).tolist()
