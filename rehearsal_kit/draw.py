"""The pure plan of a draw: from what all ranks hold to who sends which rows to whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.randomness import generator


@dataclass(frozen=True)
class DrawPlan:
    """What every destination draws; the same on every rank.

    owners, rows: int64 (destination, drawn); `rows` counts within the store of the owner. Each line is
    sorted by owner, which is the order in which an all-to-all delivers.
    """

    owners: NDArray[np.int64]
    rows: NDArray[np.int64]

    def sent_by(self, owner: int) -> tuple[NDArray[np.int64], list[int]]:
        """Rows that `owner` sends, grouped by destination, and how many each destination gets."""
        mine = self.owners == owner
        return self.rows[mine], [int(n) for n in mine.sum(axis=1)]

    def received_by(self, destination: int) -> list[int]:
        """How many rows `destination` gets from each rank."""
        return [int(n) for n in np.bincount(self.owners[destination], minlength=len(self.owners))]


def plan_draw(stored: Sequence[int], count: int, *, seed: int, step: int, branch: int = 0) -> DrawPlan:
    """Plan the draw of `min(count, total)` representatives for every rank.

    For each destination the drawn samples are distinct and uniform over all samples stored anywhere, also
    when the ranks hold unequal numbers or nothing: distinct positions in the union of all stores, mapped to
    their owners, so that the numbers per owner follow the multivariate hypergeometric law. Computed from a
    generator keyed by (seed, branch, step): no messages, no dependence on timing.

    stored: samples held by each rank; its length is the number of ranks.
    """
    ends = np.cumsum(np.asarray(stored, dtype=np.int64))
    total = int(ends[-1])
    drawn = min(count, total)
    random = generator(seed, "draw", branch, step)
    positions = np.empty((len(stored), drawn), dtype=np.int64)
    for line in positions:
        line[:] = random.choice(total, size=drawn, replace=False) if drawn else 0
    positions.sort(axis=1)
    owners = np.searchsorted(ends, positions, side="right").astype(np.int64)
    starts = ends - np.asarray(stored, dtype=np.int64)
    return DrawPlan(owners=owners, rows=positions - starts[owners])
