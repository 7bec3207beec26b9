"""The background job of the distributed buffer: it alone touches the store.

    step               t - 1                     t                       t + 1
    training    take, train, offer      take, train, offer      take, train, offer
                     |         |          ^                       ^
                     |         +-pending--|----+                  |
                     |                    |    v                  |
    background  store what t-2 offered, header, plan, rows   store what t-1 offered, ...

A job begins when step t takes its representatives: it stores what step t - 1 offered, and what it draws is
taken by step t + 1. One header per rank says what that rank holds and which settings it works with; ranks
that do not agree end there, before rows are exchanged. Every rank makes the same plan, and one all-to-all of
uneven parts carries the rows. Losses of what step t - 1 replayed, for loss-aware removal, are told to all
ranks between header and plan; they count from the next job on. An error while storing travels in the header,
so that no rank waits for one that has failed.

Where rows are exchanged between devices, the thread that trains begins that exchange, in `offer` of step t,
once the job has gathered what goes (`row_transport.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from rehearsal_kit.base.errors import OtherRankError, RankError
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.randomness import Rekeyed
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.draw_plan import DrawPlan, plan_draw, plan_earlier_draw, plan_group_draw
from rehearsal_kit.buffer.exchange import (
    Exchange,
    Header,
    gather_groups,
    gather_headers,
    gather_losses,
    gather_newest,
)
from rehearsal_kit.buffer.memory_limit import share_of
from rehearsal_kit.buffer.plans_ahead import PlansAhead
from rehearsal_kit.buffer.policies import new_policy
from rehearsal_kit.buffer.row_losses import NOTHING, Replayed
from rehearsal_kit.buffer.row_transport import RowTransport
from rehearsal_kit.buffer.states import Origin, Pending, Round, Staged, steered
from rehearsal_kit.buffer.store import LocalStore


class BackgroundJob:
    """Keeps one rank's store: once a step it stores, agrees with the other ranks, draws and exchanges.

    Runs in one background thread, in the same order of collectives on every rank.
    """

    def __init__(
        self,
        store: LocalStore,
        rehearsal: Rehearsal,
        *,
        seed: int,
        exchange: Exchange,
        transport: RowTransport,
    ) -> None:
        self.capacity = rehearsal.samples(store.layout.row_bytes)
        """Samples that the stores of all ranks may hold."""
        self._seed = seed
        self._store = store
        self._settings = rehearsal
        self._exchange = exchange
        self._transport = transport
        self._random, self._drawing = Rekeyed(seed, "store"), Rekeyed(seed, "draw")
        self._plans_ahead = PlansAhead(self._drawing)

    def resize(self, capacity: int, *, step: int) -> None:
        """Take another capacity, in samples over all ranks."""
        if capacity != self.capacity:
            share = share_of(capacity, self._exchange.rank, self._exchange.ranks)
            self._store.resize(share, random=self._random.at(self._exchange.rank, step, 1))
            self.capacity = capacity

    def work(self, work: Round, pending: Pending | None) -> Staged:
        """Store what is pending, then draw for the next step; RankError if ranks cannot go on together."""
        began = time.perf_counter()
        exchange = self._exchange
        with lost_connections(exchange.rank, work.step):
            headers = self._stored_everywhere(work, pending)
            for replayed in gather_losses(_replayed(pending), headers, exchange):
                self._store.learn(replayed)
            plan = self._plan(work, headers, [] if pending is None else pending.newest)
            places = plan.sent_by(exchange.rank)[0]
            wanted = self._store.index.rows_of(places) if self._by_group else places
            on_its_way = self._transport.drawn(plan, wanted, self._store)
        drawn = Origin(
            owners=plan.owners(exchange.rank),
            second=plan.second_of(exchange.rank),
            stored=sum(header.stored for header in headers),
        )
        placed = tuple(header.placed for header in headers)
        return Staged(drawn, on_its_way, seconds=time.perf_counter() - began, placed=placed)

    def _stored_everywhere(self, work: Round, pending: Pending | None) -> list[Header]:
        trouble = None
        try:
            self._apply(work, pending)
        except Exception as error:  # the others must learn of it, not wait for this rank
            trouble = error
        try:
            headers = gather_headers(
                self._header(work, pending, error=int(trouble is not None)), self._exchange
            )
        except RankError:
            if trouble is not None:
                raise trouble from None
            raise
        thresholds = {header.threshold for header in headers}
        if len(thresholds) > 1:
            self._store.trim(min(thresholds), random=self._random.at(self._exchange.rank, work.step, 2))
            headers = gather_headers(self._header(work, pending), self._exchange)
        return headers

    def _apply(self, work: Round, pending: Pending | None) -> None:
        if work.policy is not None and work.policy != self._settings.policy:
            self._store.switch(new_policy(work.policy, self._seed))
        self._settings = steered(self._settings, work)
        if work.capacity is not None:
            self.resize(work.capacity, step=work.step)
        self._store.place()
        if pending is None:
            return
        random = self._random.at(self._exchange.rank, work.step)
        offered, groups = pending.accepted(self._store.layout), pending.groups
        store, count = self._store, self._settings.candidates
        if len(offered) > count and store.policy.takes_count and store.intake.full:
            # It has filled up since this was handed over: then exactly c of the mini-batch are offered.
            chosen = store.policy.candidates(len(offered), count=count, intake=store.intake, random=random)
            offered, groups = offered.some(chosen), [groups[i] for i in chosen.tolist()]
        self._store.offer_accepted(offered, groups, random=random)

    def _header(self, work: Round, pending: Pending | None, *, error: int = 0) -> Header:
        return Header(
            generation=work.generation,
            branch=work.branch,
            step=work.step,
            settings=work.settings,
            command=work.command,
            representatives=work.representatives,
            distillation=work.distillation,
            fewer=work.fewer[0],
            fewer_again=work.fewer[1],
            capacity=self.capacity,
            stored=len(self._store),
            groups=len(self._store.index.members),
            threshold=self._store.policy.threshold,
            replayed=len(_replayed(pending)),
            placed=self._store.placed,
            error=error,
        )

    @property
    def _by_group(self) -> bool:
        return self._settings.draw in ("groups", "earlier")

    def _plan(self, work: Round, headers: list[Header], newest: Sequence[int]) -> DrawPlan:
        if len(headers) == 1 and not work.distillation and not self._by_group:
            stored, count = headers[0].stored, work.representatives
            return self._plans_ahead.plan(stored, count, branch=work.branch, step=work.step)
        counts = [work.representatives, work.distillation] if work.distillation else [work.representatives]
        random = self._drawing.at(work.branch, work.step)
        if self._by_group:
            sizes = gather_groups(self._store.group_sizes(), headers, self._exchange)
            if self._settings.draw == "groups":
                return plan_group_draw(sizes, counts, random, fewer=work.fewer)
            left_out = gather_newest(newest, self._exchange)
            return plan_earlier_draw(sizes, counts, newest=left_out, random=random, fewer=work.fewer)
        return plan_draw([header.stored for header in headers], counts, random, fewer=work.fewer)


@contextlib.contextmanager
def lost_connections(rank: int, step: int) -> Iterator[None]:
    """Turns what torch.distributed raises within into OtherRankError, but for errors of the device."""
    try:
        yield
    except RuntimeError as error:
        raise_of_device(error)
        raise OtherRankError(
            f"rank {rank} could not exchange samples at step {step}: {error}. "
            "Another rank has died, has failed, or takes longer than the time-out."
        ) from error


def _replayed(pending: Pending | None) -> Replayed:
    return NOTHING if pending is None else pending.replayed
