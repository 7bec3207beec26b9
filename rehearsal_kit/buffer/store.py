"""The part of the rehearsal buffer that one rank holds: bounded, and rows that stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.tensor_files import per_block
from rehearsal_kit.buffer.device_rows import DeviceRows, RowsOnTheirWay
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.frozen_rows import FrozenRows
from rehearsal_kit.buffer.group_index import GroupIndex
from rehearsal_kit.buffer.offered_there import PackedThere
from rehearsal_kit.buffer.policies import AbstractPolicy, Intake, PolicyState
from rehearsal_kit.buffer.removal import LossAwareRemoval
from rehearsal_kit.buffer.row_layout import Accepted, Packed, RowLayout, Samples, Words
from rehearsal_kit.buffer.row_losses import Replayed, RowLosses
from rehearsal_kit.buffer.row_memory import HostRows, RowMemory, RowSource
from rehearsal_kit.buffer.row_placement import UNDECIDED, RowPlacement

SPARE = 8
"""While a checkpoint is written, one row in so many may be held twice: those that change meanwhile. What
`memory_limit` leaves free is counted with it."""
LEAST_SPARE_BYTES = 16 * MIB
"""And so much in any case: small stores change as a whole while a disk answers."""


@dataclass(frozen=True)
class Contents:
    """What a store holds, row by row, and all that later choices of victims depend on."""

    rows: Words | RowSource
    """(row, word)."""
    groups: NDArray[np.int64]
    """(row,): the group of each."""
    places: NDArray[np.int64]
    """(row,): the position of each within its group."""
    losses: NDArray[np.float64] | None = None
    """(row,): the loss of each when it was last replayed, NaN where it never was; None: all of them never."""
    seats: NDArray[np.int64] | None = None
    """(row,): the `sample_id` by whose tag a reservoir holds each; None: all by their own."""


class LocalStore:
    """Bounded memory of past samples on one rank. Rows 0 to len - 1 are taken.

    Where samples have a field `sample_id`, a sample that is held already is renewed in its row instead of
    being stored twice, so that several passes over a task do not fill the store with copies.

    Memory: capacity x `RowLayout.row_bytes`, and up to about 200 bytes of bookkeeping per sample held.

    removal: of `Rehearsal`. With "loss" it is told losses by `learn`. placement: where its rows lie; None: in
    host memory.
    """

    def __init__(
        self,
        layout: RowLayout,
        capacity: int,
        *,
        policy: AbstractPolicy,
        removal: str = "random",
        placement: RowPlacement | None = None,
    ) -> None:
        require_identity(policy, layout, removal=removal)
        self.layout = layout
        self.capacity = capacity
        self.policy = policy
        self.index = GroupIndex()
        self._row_of: dict[int | None, int] = {}
        self._placement = placement
        self._rows: RowMemory = HostRows(layout, capacity)
        self._identity = np.zeros(capacity, dtype=np.int64)
        self._beside = RowLosses(capacity) if removal == "loss" else None
        self._frozen: list[FrozenRows] = []

    def __len__(self) -> int:
        """Samples held."""
        return len(self.index)

    @property
    def intake(self) -> Intake:
        """What decides which samples of the next mini-batch are worth offering."""
        return Intake(full=len(self) >= self.capacity, threshold=self.policy.threshold)

    @property
    def contents(self) -> Contents:
        """Everything held; the rows are those of the store, not a copy."""
        rows, beside = self._rows.first(len(self)), self._beside
        groups, places = self.index.groups_of_rows(), self.index.places_of_rows()
        if beside is None:
            return Contents(rows, groups, places)
        taken = slice(len(self))
        return Contents(rows, groups, places, beside.losses[taken].copy(), beside.seats[taken].copy())

    def freeze(self, *, free: int = 0) -> Contents:
        """Everything held now, to be read by another thread while this store goes on; `release` it then.

        free: bytes of memory that rows may take which change before they are read, where `SPARE` is less:
        once there is no more, changes wait for the reader.
        """
        held = self.contents
        spare = spare_rows(self.capacity, self.layout.row_bytes, free=free)
        rows = FrozenRows(self._rows.first(len(self)), spare=spare)
        self._frozen.append(rows)
        return replace(held, rows=rows)

    @property
    def there(self) -> DeviceRows | None:
        """Its rows where they lie on the device; None in host memory."""
        return self._rows if isinstance(self._rows, DeviceRows) else None

    @property
    def placed(self) -> int:
        """Where its rows lie, as `row_placement` numbers it."""
        return UNDECIDED if self._placement is None else self._placement.decided

    def place(self) -> None:
        """Go on with having the rows lie where there is room for them; called once a step."""
        if self._placement is not None:
            rows = self._placement.go_on(self._rows, count=len(self), capacity=self.capacity)
            self._lie_in(rows)

    def group_sizes(self) -> dict[int, int]:
        """Samples held of each group, by number of the group."""
        return self.index.sizes()

    def offer(
        self,
        samples: Samples,
        groups: Sequence[int],
        *,
        random: np.random.Generator,
        chosen: Rows | None = None,
    ) -> None:
        """Store these samples, or the chosen ones among them, each in a free row or in place of another.

        A policy may turn samples away from a full store.

        groups: the group of each sample to store. Where two of them meet in a row the later one stays.
        SettingsError, and nothing is stored, if names, shapes or dtypes are not those of this store, or a
        value is not finite where it must be.
        """
        self.offer_accepted(self.layout.accept(samples, chosen), groups, random=random)

    def offer_accepted(
        self, accepted: Accepted | Packed | PackedThere, groups: Sequence[int], *, random: np.random.Generator
    ) -> None:
        """Store all of these samples of this layout, as `offer` does."""
        if self.capacity and len(accepted):
            self._store(accepted, groups, random)

    def gather(self, rows: Rows, out: Words | None = None) -> Words:
        """(row, word): copies of these rows in host memory, all below len(self); into `out` if given."""
        return self._rows.take(rows, out)

    def learn(self, replayed: Replayed) -> None:
        """Losses of samples, which count where they are still held, for loss-aware removal."""
        if self._beside is not None:
            for identity, loss in zip(replayed.identities.tolist(), replayed.losses.tolist(), strict=True):
                if (row := self._row_of.get(identity)) is not None:
                    self._beside.losses[row] = loss

    def trim(self, threshold: int, *, random: np.random.Generator) -> None:
        """Let go of as many samples as have tags not below the threshold that all ranks agreed on."""
        if threshold < self.policy.threshold:
            self.policy.threshold = threshold
            self._let_go(random)

    def resize(self, capacity: int, *, random: np.random.Generator) -> None:
        """Take another capacity; where it is smaller the policy says who stays.

        Old and new rows exist side by side for a moment.
        """
        if capacity == self.capacity:
            return
        if self.policy.needs_identity:
            self._fit(np.empty(0, dtype=np.int64), capacity, random)
        kept = self.policy.kept(self.index, capacity=capacity, random=random)
        beside = self._beside
        if beside is not None and len(kept) < len(self):
            kept = LossAwareRemoval(beside.losses, random).kept_instead(kept, self.index)
        groups = [self.index.group(row) for row in kept]
        rows: RowMemory = HostRows(self.layout, capacity)
        if self._placement is not None:
            rows = self._placement.again(capacity, before=self.capacity)
        each = per_block(self.layout.row_bytes)
        for begin in range(0, len(kept), each):
            rows.adopt(self._rows, np.array(kept[begin : begin + each], dtype=np.int64), begin=begin)
        self.capacity = capacity
        self._adopt(rows, len(kept), GroupIndex.of(groups))
        if beside is not None:
            self._beside = RowLosses(capacity)
            self._beside.fill(self._identity[: len(kept)], beside.losses[kept], beside.seats[kept])

    def switch(self, policy: AbstractPolicy) -> None:
        """Keep what is held, and let another policy decide from now on.

        What is held becomes the past of the new policy: a reservoir is fair to all that come later and to
        what is held now, not to what was let go before; for policies that go by age rows are as old as
        their numbers are low.
        """
        require_identity(policy, self.layout)
        self.policy = policy
        if self._beside is not None:
            count = len(self)
            self._beside.fill(self._identity[:count], self._beside.losses[:count].copy())

    def fill(self, contents: Contents, *, state: PolicyState | None = None) -> None:
        """Hold exactly this; for a store that is empty. SettingsError if it does not fit.

        state: what the policy remembered of it; samples that may not stay by that are let go of. None: the
        policy goes on with what it is.
        """
        count, words = contents.rows.shape
        if len(self) or count > self.capacity or words != self.layout.words:
            raise SettingsError(
                f"{count} rows of {words} words cannot be restored into a store that holds {len(self)} "
                f"of at most {self.capacity} rows of {self.layout.words} words; it must be empty, large "
                "enough, and of the same layout."
            )
        self._rows.load(contents.rows)
        self._adopt(self._rows, count, GroupIndex.of(contents.groups.tolist(), contents.places.tolist()))
        if self._beside is not None:
            self._beside.fill(self._identity[:count], contents.losses, contents.seats)
        if state is not None:
            self.policy.restore(state)
            if self.policy.needs_identity:
                self._let_go(None)

    # Placing --------------------------------------------------------------------------------------------

    def _store(
        self, accepted: Accepted | Packed | PackedThere, groups: Sequence[int], random: np.random.Generator
    ) -> None:
        identities, count = accepted.identities, len(accepted)
        which: Sequence[int] = range(count)
        if self.policy.needs_identity:
            assert identities is not None  # noqa: S101 - for the type checker; the layout has the field
            self._fit(identities, self.capacity, random)
            which = np.flatnonzero(self.policy.may_stay(identities)).tolist()
        uniform = random.random(count).tolist()
        known = [None] * count if identities is None else identities.tolist()
        removal = None if self._beside is None else LossAwareRemoval(self._beside.losses, random)
        source_of = self._placed(which, groups, known=known, uniform=uniform, removal=removal)
        rows = np.array(list(source_of), dtype=np.int64)
        if self._frozen:
            self._before(rows)
        # Where each has a row of its own, all come in the order in which they are.
        sources = None if len(rows) == count else np.array(list(source_of.values()), dtype=np.int64)
        self._rows.write(accepted, rows, sources)

    def _before(self, changing: Rows) -> None:
        """Tell those who read what the store was some moments ago what is about to change."""
        self._frozen = [frozen for frozen in self._frozen if not frozen.over]
        for frozen in self._frozen:
            frozen.keep(changing)

    def _placed(
        self,
        which: Sequence[int],
        groups: Sequence[int],
        *,
        known: Sequence[int | None],
        uniform: Sequence[float],
        removal: LossAwareRemoval | None,
    ) -> dict[int, int]:
        """Find rows for these samples; for each row that changes, the sample that is to be in it.

        known: `sample_id` of each sample offered, None where there is none. The policy may turn some away.
        """
        index, row_of, beside, found = self.index, self._row_of, self._beside, {}
        capacity, make_room, identity_of = self.capacity, self.policy.make_room, self._identity
        for i in which:
            identity, group = known[i], groups[i]
            row = row_of.get(identity)
            if row is None:
                if beside is not None and beside.is_taken(identity):
                    continue
                if len(index) < capacity:
                    row = index.append(group)
                else:
                    row = make_room(group, index, capacity=capacity, uniform=uniform[i])
                    if row is None:
                        continue
                    if removal is not None:
                        row = removal.instead_of(row, index)
                    row_of.pop(identity_of.item(row), None)
                if identity is not None:
                    identity_of[row], row_of[identity] = identity, row
                    if beside is not None:
                        beside.enter(row, identity)
            index.assign(row, group)
            found[row] = i
        return found

    @property
    def _seats(self) -> Rows:
        """(row,): the `sample_id` by whose tag each is held."""
        return (self._identity if self._beside is None else self._beside.seats)[: len(self)]

    def _fit(self, arriving: Rows, capacity: int, random: np.random.Generator) -> None:
        arrived = dict.fromkeys(arriving.tolist())
        beside = self._beside
        # In the place of some another sample stays: these do not come again.
        new = [
            i for i in arrived if i not in self._row_of and not (beside is not None and beside.is_taken(i))
        ]
        if len(self) + len(new) > capacity:
            policy, before = self.policy, self.policy.threshold
            policy.fit(np.concatenate([self._seats, np.array(new, dtype=np.int64)]), capacity)
            if policy.threshold < before:
                self._let_go(random)

    def _let_go(self, random: np.random.Generator | None) -> None:
        gone = np.flatnonzero(~self.policy.may_stay(self._seats))
        if self._beside is not None and random is not None and len(gone):
            self._beside.trade(gone, len(self), random)
            gone = np.flatnonzero(~self.policy.may_stay(self._seats))
        if self._frozen:
            self._before(gone)
        origin_of: dict[int, int] = {}
        for row in gone[::-1].tolist():
            del self._row_of[int(self._identity[row])]
            last = self.index.replace(row)
            if self._beside is not None:
                self._beside.leave(row, last)
            if last != row:  # rows stay dense: the last one moves into the gap
                origin_of[row] = origin_of.pop(last, last)
                self._identity[row] = self._identity[last]
                self._row_of[int(self._identity[row])] = row

        targets, origins = (np.array([*rows], dtype=np.int64) for rows in (origin_of, origin_of.values()))
        self._rows.move(targets, origins)

    def _lie_in(self, rows: RowMemory) -> None:
        if rows is not self._rows:
            if not isinstance(rows, RowsOnTheirWay):  # nobody changes the old ones any more
                self._frozen = []
            self._rows = rows

    def _adopt(self, rows: RowMemory, count: int, index: GroupIndex) -> None:
        self._lie_in(rows)
        self.index = index
        self._identity = np.zeros(self.capacity, dtype=np.int64)
        self._row_of = {}
        identities = rows.identities(count)
        if identities is not None:
            self._identity[:count] = identities
            self._row_of = {identity: row for row, identity in enumerate(identities.tolist())}


def spare_rows(rows: int, row_bytes: int, *, free: int = 0) -> int:
    """How many rows of a store of so many are held twice at most while a checkpoint of it is written.

    free: bytes that they may take in any case.
    """
    return min(rows, max(rows // SPARE, max(free, LEAST_SPARE_BYTES) // row_bytes))


def require_identity(policy: AbstractPolicy, layout: RowLayout, *, removal: str = "random") -> None:
    """SettingsError if samples have to be known again and rows of this layout have no identity."""
    if (policy.needs_identity or removal == "loss") and not layout.has_identity:
        needs, instead = f"the policy {policy.name}", "take the policy quotas"
        if not policy.needs_identity:
            needs, instead = "removal='loss'", "take removal='random'"
        raise SettingsError(
            f"{needs} needs a field sample_id: one int64 per sample, different for every "
            f"distinct sample of the whole stream. The fields are {', '.join(map(str, layout.fields))}. Add "
            f"it, or {instead}."
        )
