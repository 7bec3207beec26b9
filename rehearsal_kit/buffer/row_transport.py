"""How drawn rows come to the device that trains, from wherever they are stored.

    rows lie        one rank                    several ranks
    in host memory  gathered, sent there        gathered, exchanged between hosts (gloo), sent there
    on the device   gathered there              gathered there, or sent there ---exchanged between devices,
    or there is                                 by the thread that trains, among the sums of gradients (NCCL)
    such a device

Between devices rows go where the gradients go: two communicators of NCCL that work at the same time may wait
for each other, and those of one work in the order in which they are called, which only one thread keeps the
same on all ranks. What the host reads of them, one number for each field of that kind, goes between hosts.
"""

from __future__ import annotations

import torch

from rehearsal_kit.buffer.draw_plan import DrawPlan
from rehearsal_kit.buffer.exchange import Exchange
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.row_layout import RowLayout, Words
from rehearsal_kit.buffer.staging import Delivered, Staging, UnderWay
from rehearsal_kit.buffer.store import LocalStore


class RowTransport:
    """Carries out plans on one rank."""

    def __init__(
        self, layout: RowLayout, exchange: Exchange, *, staging: Staging, with_gradients: bool
    ) -> None:
        """with_gradients: whether rows are exchanged between devices; the same on all ranks."""
        self.with_gradients = with_gradients and exchange.ranks > 1
        """Whether the thread that trains has to begin exchanges."""
        self._layout = layout
        self._exchange = exchange
        self._staging = staging

    def drawn(self, plan: DrawPlan, wanted: Rows, store: LocalStore) -> Delivered | UnderWay:
        """The rows that a plan brings to this rank. wanted: those that it sends, by destination."""
        staging, exchange, there = self._staging, self._exchange, store.there
        if not plan.drawn:
            return staging.deliver(staging.empty(0))
        if self.with_gradients:
            return self._under_way(plan, wanted, store)
        if there is not None:  # on a rank that is alone
            return staging.delivered_there(*there.take_there(wanted))
        outgoing = store.gather(wanted, out=staging.pinned(len(wanted)))
        return staging.deliver(exchange.rows(torch.from_numpy(outgoing), plan, staging.empty))

    def _under_way(self, plan: DrawPlan, wanted: Rows, store: LocalStore) -> UnderWay:
        staging, exchange, there = self._staging, self._exchange, store.there
        if there is not None:
            outgoing, numbers = there.take_there(wanted)
        else:
            here = staging.empty(len(wanted))
            numbers = self._layout.number_table(store.gather(wanted, out=here.numpy()))
            outgoing = staging.sent(here)
        incoming = staging.empty_there(plan.drawn_by(exchange.rank))
        sent, received = plan.sent_by(exchange.rank)[1], plan.received_by(exchange.rank)
        return staging.exchanged_there(
            outgoing,
            incoming,
            self._of_all(plan, numbers),
            begin=lambda: exchange.begin_rows(outgoing, incoming, sent=sent, received=received),
        )

    def _of_all(self, plan: DrawPlan, numbers: Words) -> Words:
        """`number_table` of the rows that come, for that of the rows that go."""
        width = numbers.shape[1]
        if not width:  # on no rank
            return numbers
        outgoing = torch.from_numpy(numbers)
        arrived = self._exchange.rows(outgoing, plan, lambda count: outgoing.new_empty((count, width)))
        return arrived.numpy()
