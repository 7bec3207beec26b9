"""The pure plan of a draw: from what all ranks hold to who sends which samples to whom.

    stores      rank 0: 3        rank 1: 0   rank 2: 4
    union       0   1   2        -           3   4   5   6          ends = 3, 3, 7
    positions   of rank 0: 1, 5   of rank 1: 0, 2   of rank 2: 3, 4    (two for each destination)
    sent by     rank 0: its 1 to rank 0, its 0 and 2 to rank 1; rank 2: its 2 to rank 0, its 0 and 1 to rank 2

All stores, one after the other, are one row of places. Every destination draws distinct places of it,
uniformly, so that each stored sample is equally likely wherever it lies. Each rank makes the plan for all
destinations from the same random numbers and the stored counts alone: nobody has to be asked who sends what.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.buffer.shares import equal_shares

Positions = NDArray[np.int64]
"""Places in the union of all stores, rank after rank: (destination, drawn)."""


@dataclass(frozen=True)
class DrawPlan:
    """What every destination draws; the same on every rank."""

    positions: Positions
    """(destination, drawn), ascending in each line: which is the order in which an all-to-all delivers."""
    ends: NDArray[np.int64]
    """(rank,): where the store of each rank ends in the union."""
    second: NDArray[np.bool_] | None = None
    """(destination, drawn): which of them belong to the second draw; None where there is only one."""
    unequal: bool = False
    """Whether some destinations draw fewer than others: their lines end in places behind the last store."""
    _sent: dict[int, tuple[NDArray[np.int64], list[int]]] = field(
        default_factory=dict, init=False, repr=False
    )
    """What `sent_by` has found: who gathers the rows asks it, and who sends them."""

    @property
    def drawn(self) -> int:
        """Samples per destination, over both draws; of those that draw most."""
        return int(self.positions.shape[1])

    def drawn_by(self, destination: int) -> int:
        """Samples that one destination draws, over both draws."""
        return int((self.positions[destination] < self.ends[-1]).sum()) if self.unequal else self.drawn

    def second_of(self, destination: int) -> NDArray[np.bool_]:
        """(drawn,): which of those that `destination` draws belong to the second draw."""
        drawn = self.drawn_by(destination)
        return np.zeros(drawn, dtype=bool) if self.second is None else self.second[destination, :drawn]

    def sent_by(self, owner: int) -> tuple[NDArray[np.int64], list[int]]:
        """Places within its store that `owner` sends, by destination, and how many each one gets."""
        if len(self.ends) == 1:
            return self.positions[0], [self.drawn]
        if owner in self._sent:
            return self._sent[owner]
        start = self.ends[owner - 1] if owner else 0
        mine = (self.positions >= start) & (self.positions < self.ends[owner])
        return self._sent.setdefault(owner, (self.positions[mine] - start, mine.sum(axis=1).tolist()))

    def owners(self, destination: int) -> NDArray[np.int64]:
        """(drawn,): the rank that holds each sample that `destination` draws."""
        if len(self.ends) == 1:
            return np.zeros(self.drawn, dtype=np.int64)
        places = self.positions[destination, : self.drawn_by(destination)]
        found: NDArray[np.int64] = self.ends.searchsorted(places, side="right")
        return found

    def received_by(self, destination: int) -> list[int]:
        """How many samples `destination` gets from each rank."""
        counts: list[int] = np.bincount(self.owners(destination), minlength=len(self.ends)).tolist()
        return counts


def plan_draw(
    stored: Sequence[int],
    counts: Sequence[int],
    random: np.random.Generator,
    *,
    fewer: Sequence[int] = (),
) -> DrawPlan:
    """Plan one draw for every rank, or two independent ones that travel together.

    In each draw a destination gets min(count, total) distinct samples, uniform over all samples stored
    anywhere, also when the ranks hold unequal numbers or nothing: distinct places in the union of all
    stores, so that the numbers per owner follow the multivariate hypergeometric law.

    stored: samples held by each rank; its length is the number of ranks. counts: of one draw or of two.
    random: in the same state on every rank; then the plan is the same on every rank, without a message.
    fewer: of each draw, how many of the last destinations draw one sample less; empty: none.
    """
    total = sum(stored)
    tables = [_distinct(total, (len(stored), count), random) for count in counts]
    ends = np.array(list(accumulate(stored)), dtype=np.int64)
    return _joined(tables, counts, ends=ends, fewer=fewer, random=random)


def plan_lines(stored: int, words: Sequence[NDArray[np.uint64]]) -> list[DrawPlan | None]:
    """Plan one draw of each of several steps for a rank that is alone, as `plan_draw` does.

    stored: samples it holds. words: the first numbers of each step's generator, as many as are drawn. None
    for a step that these do not suffice for.
    """
    ends, table = np.array([stored], dtype=np.int64), np.array(words)
    count = table.shape[1]
    if not count or count * count > stored:  # drawn in another way
        return [None] * len(words)
    fair = table.max(axis=1) <= np.uint64(_limit(stored) - 1)
    lines = (table % np.uint64(stored)).astype(np.int64)
    lines.sort(axis=1)
    fair &= (lines[:, 1:] != lines[:, :-1]).all(axis=1)
    return [
        DrawPlan(line[None], ends) if is_fair else None
        for line, is_fair in zip(lines, fair.tolist(), strict=True)
    ]


def plan_group_draw(
    sizes: Sequence[Mapping[int, int]],
    counts: Sequence[int],
    random: np.random.Generator,
    *,
    fewer: Sequence[int] = (),
) -> DrawPlan:
    """Plan as `plan_draw` does, but every group has an equal share of each draw.

    Within a group all samples are equal. A group that holds less than its share gives all it has, and the
    others share the rest; what cannot be divided goes to groups chosen uniformly for each destination.
    Places count through a rank's store group by group, in order of the group's number.

    sizes: for each rank, the samples it holds of each group.
    """
    _, held, within = _by_rank_and_group(sizes)
    ends = np.cumsum(held.sum(axis=1))
    tables = []
    for count in counts:
        group, place = _by_group(held.sum(axis=0), (len(sizes), count), random)
        through = np.cumsum(held, axis=0)
        owner = (place[None] >= through[:, group]).sum(axis=0)
        tables.append(within[owner, group] + place - (through - held)[owner, group])
    return _joined(tables, counts, ends=ends, fewer=fewer, random=random)


def plan_earlier_draw(
    sizes: Sequence[Mapping[int, int]],
    counts: Sequence[int],
    *,
    newest: Collection[int],
    random: np.random.Generator,
    fewer: Sequence[int] = (),
) -> DrawPlan:
    """Plan as `plan_draw` does, but nothing of the newest groups is drawn, and all other samples are equal.

    Places count through a rank's store group by group, as in `plan_group_draw`.

    sizes: for each rank, the samples it holds of each group. newest: numbers of the groups that are left out.
    """
    groups, held, within = _by_rank_and_group(sizes)
    left = held * np.array([group not in newest for group in groups], dtype=np.int64)
    passed = np.cumsum(left) - left.ravel()
    tables = []
    for count in counts:
        place = _distinct(int(left.sum()), (len(sizes), count), random)
        at = passed.searchsorted(place, side="right") - 1
        tables.append(within.ravel()[at] + place - passed[at])
    ends = np.cumsum(held.sum(axis=1))
    return _joined(tables, counts, ends=ends, fewer=fewer, random=random)


def _by_rank_and_group(
    sizes: Sequence[Mapping[int, int]],
) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
    """All groups, samples held by (rank, group), and where those begin in the union of all stores."""
    groups = sorted(set().union(*sizes))
    held = np.array([[size.get(group, 0) for group in groups] for size in sizes], dtype=np.int64)
    held = held.reshape(len(sizes), len(groups))
    ends = np.cumsum(held.sum(axis=1))
    return groups, held, np.cumsum(held, axis=1) - held + (ends - held.sum(axis=1))[:, None]


def _joined(
    tables: Sequence[Positions],
    counts: Sequence[int],
    *,
    ends: NDArray[np.int64],
    fewer: Sequence[int],
    random: np.random.Generator,
) -> DrawPlan:
    unequal = False
    for table, count, few in zip(tables, counts, fewer, strict=False):
        if few and table.shape[1] == count > 0:  # else all of them get all there is
            # Any of them is left out as likely: what remains is as uniform.
            table[np.arange(len(table) - few, len(table)), random.integers(count, size=few)] = ends[-1]
            unequal = True
    if len(tables) == 1 or not tables[1].size:
        tables[0].sort(axis=1)
        return DrawPlan(tables[0], ends, unequal=unequal)
    both = np.concatenate(tables, axis=1)
    order = np.argsort(both, axis=1, kind="stable")
    second = order >= tables[0].shape[1]
    return DrawPlan(np.take_along_axis(both, order, axis=1), ends, second, unequal)


def _distinct(total: int, shape: tuple[int, int], random: np.random.Generator) -> Positions:
    """Draw in every line min(count, total) distinct integers below total.

    Every set of them is equally likely, but not every order, so that a part of a line is no smaller draw.
    """
    lines, count = shape[0], min(shape[1], total)
    if count * count > total:
        return _floyd(total, (lines, count), random)
    if lines == 1 and count:
        return np.array(_line(total, count, random), dtype=np.int64)[None]
    table = random.integers(total, size=(lines, count)) if count else np.zeros((lines, 0), dtype=np.int64)
    while (redo := _with_repeats(table)) is not None:  # whole lines are drawn again: what remains is uniform
        table[redo] = random.integers(total, size=(len(redo), count))
    return table


def _line(total: int, count: int, random: np.random.Generator) -> list[int]:
    """One short line, as in a run on one rank: it is drawn faster without arrays."""
    limit = _limit(total)
    while True:
        words = random.bit_generator.random_raw(count).tolist()
        line = {word % total for word in words}
        if len(line) == count and max(words) < limit:
            return list(line)


def _limit(total: int) -> int:
    """Words of 64 bits from here on would favour small numbers, taken modulo the total."""
    return 2**64 - 2**64 % total


def _with_repeats(table: Positions) -> NDArray[np.int64] | None:
    """The lines in which a number occurs twice, or None."""
    ordered = np.sort(table, axis=1)
    repeats = ordered[:, 1:] == ordered[:, :-1]
    return np.flatnonzero(repeats.any(axis=1)) if repeats.any() else None


def _floyd(total: int, shape: tuple[int, int], random: np.random.Generator) -> Positions:
    """Bentley and Floyd, "A sample of brilliance", CACM 1987: exact, and never draws again."""
    table = np.empty(shape, dtype=np.int64)
    for column, last in enumerate(range(total - shape[1], total)):
        drawn = random.integers(last + 1, size=shape[0])
        seen = (table[:, :column] == drawn[:, None]).any(axis=1)
        table[:, column] = np.where(seen, last, drawn)
    return table


def _by_group(
    held: NDArray[np.int64], shape: tuple[int, int], random: np.random.Generator
) -> tuple[Positions, Positions]:
    """Which group each drawn sample comes from, and its place among that group's samples on all ranks."""
    lines = shape[0]
    shares, rest = equal_shares(held, shape[1])
    able = np.flatnonzero(held > shares)
    extra = able[_distinct(len(able), (lines, rest), random)]
    group = np.concatenate(
        [np.repeat(np.arange(len(held)), shares)[None].repeat(lines, axis=0), extra], axis=1
    )
    if not shares.any():
        return group, random.integers(held[group]) if group.size else group
    place = np.empty_like(group)
    for number in np.unique(group):
        chosen = group == number
        wanted = chosen.sum(axis=1)  # the share, or one more
        for count in np.unique(wanted):
            some = np.flatnonzero(wanted == count)
            drawn = _distinct(int(held[number]), (len(some), int(count)), random)
            place[some[:, None], np.nonzero(chosen[some])[1].reshape(drawn.shape)] = drawn
    return group, place
