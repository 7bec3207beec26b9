"""Loss-aware removal: of two rows that could go, the one that the network knows better goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.buffer.group_index import GroupIndex

CAPPED = 5
"""One row of so many, those with the largest losses, are not protected by them: they may well be broken."""
LOOKED_AT = 256
"""Rows from which the cap is told, so that it costs the same whatever the size of a group. Of larger groups
as many are drawn: where a tenth of a group is broken, a fifth of these is so once in a million times."""


class LossAwareRemoval:
    """Which row goes in the place of one that was chosen uniformly: a tournament of two.

    The chosen row is matched against a rival, drawn uniformly from the same rows. The rival goes in its place
    if both losses are known, that of the rival is the smaller one, and that of the chosen row does not exceed
    the cap: the largest loss of these rows but for the upper fifth. So, of n rows, a row goes with the chance

        1 / n            if its loss is not known, or lies above the cap
        (u + 2 k) / n    if not, where the share u of all rows has no known loss or one above the cap, and the
                         share k larger losses up to the cap

    which is that of random removal on average, and depends on the order of losses alone, not on their scale.
    So where at most a fifth of the rows is broken, and their losses are the largest, they go as at random.
    Small losses first: Buzzega et al., "Rethinking experience replay", arXiv 2010.05595; tournaments:
    Goldberg and Deb, "A comparative analysis of selection schemes used in genetic algorithms", 1991.

    losses: (row,) of a store, NaN where a row was never replayed; looked up anew at every choice. One object
    serves one change of a store: it tells the cap of each group once.
    """

    def __init__(self, losses: NDArray[np.float64], random: np.random.Generator) -> None:
        self._losses = losses
        self._random = random
        self._caps: dict[int, float] = {}

    def instead_of(self, row: int, index: GroupIndex) -> int:
        """The row of the same group that goes."""
        group = index.group(row)
        rows = index.members[group]
        if group not in self._caps:
            self._caps[group] = self._cap(rows)
        rival = rows[self._place(rows)]
        return rival if self._goes(rival, row, self._caps[group]) else row

    def kept_instead(self, kept: Sequence[int], index: GroupIndex) -> list[int]:
        """The rows that stay where a policy would keep these: as many of each group, in ascending order."""
        chosen = set(kept)
        stay: list[int] = []
        for group in index.sizes():
            goes: list[int] = []
            stays: list[int] = []
            for row in index.members[group]:
                (stays if row in chosen else goes).append(row)
            for _ in self.exchanged(goes, stays):
                pass
            stay += stays
        return sorted(stay)

    def exchanged(self, goes: Sequence[int], stays: list[int]) -> Iterator[tuple[int, int]]:
        """Pairs of a row that was to go and the one that goes in its place, which `stays` then lacks."""
        if not stays:
            return
        cap = self._cap([*goes, *stays])
        for row in goes:
            place = self._place(stays)
            rival = stays[place]
            if self._goes(rival, row, cap):
                stays[place] = row
                yield row, rival

    def _place(self, rows: Sequence[int]) -> int:
        return int(self._random.random() * len(rows))

    def _goes(self, rival: int, row: int, cap: float) -> bool:
        return bool(self._losses[rival] < self._losses[row] <= cap)  # not where one of them is NaN

    def _cap(self, rows: Sequence[int]) -> float:
        if len(rows) > LOOKED_AT:
            rows = [rows[place] for place in self._random.integers(len(rows), size=LOOKED_AT).tolist()]
        losses = self._losses[np.array(rows, dtype=np.int64)]
        known = losses[~np.isnan(losses)]
        place = len(known) - -(-len(known) // CAPPED) - 1
        return float(np.partition(known, place)[place]) if place >= 0 else -np.inf
