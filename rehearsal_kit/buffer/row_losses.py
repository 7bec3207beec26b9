"""What loss-aware removal has to know of each row of a store, beside its words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.removal import LossAwareRemoval


@dataclass(frozen=True)
class Replayed:
    """What a step has shown of samples that were replayed; wherever they are held."""

    identities: NDArray[np.int64]
    """(sample,): `sample_id` of each."""
    losses: NDArray[np.float64]
    """(sample,): finite."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.identities)

    @staticmethod
    def of(identities: NDArray[np.int64], losses: NDArray[np.float64]) -> Replayed:
        """Those of these samples whose losses are finite: others cannot be compared."""
        finite = np.isfinite(losses)
        return Replayed(identities[finite], losses[finite])


NOTHING = Replayed(np.zeros(0, dtype=np.int64), np.zeros(0))
"""No sample."""


class RowLosses:
    """The loss of each row, and the seat by which a reservoir holds it.

    A reservoir holds samples by their tags, so a row that stays in the place of another takes over its tag:
    the *seat* of a row is the `sample_id` to which its tag belongs, its own for most. Thereby the tags that
    are held, the threshold, and which samples come in, are those of random removal.
    """

    def __init__(self, capacity: int) -> None:
        self.losses: NDArray[np.float64] = np.full(capacity, np.nan)
        """(row,): when it was last replayed; NaN where it never was."""
        self.seats: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        """(row,)."""
        self._taken_over: set[int] = set()

    def fill(
        self,
        identities: NDArray[np.int64],
        losses: NDArray[np.float64] | None = None,
        seats: NDArray[np.int64] | None = None,
    ) -> None:
        """Rows 0, 1, ... are these, (row,); None: none was replayed, each has a seat of its own."""
        self.losses[:] = np.nan
        if losses is not None:
            self.losses[: len(losses)] = losses
        own = self.seats[: len(identities)]
        own[:] = identities if seats is None else seats
        self._taken_over = set(own[own != identities].tolist())

    def enter(self, row: int, identity: int) -> None:
        """A sample that is new comes into this row."""
        self.losses[row], self.seats[row] = np.nan, identity

    def leave(self, row: int, last: int) -> None:
        """A row is let go of, and the last one moves into its place."""
        self._taken_over.discard(int(self.seats[row]))
        self.losses[row], self.seats[row] = self.losses[last], self.seats[last]

    def is_taken(self, identity: int | None) -> bool:
        """Whether another sample has the seat of this one."""
        return identity in self._taken_over

    def trade(self, goes: Rows, rows: int, random: np.random.Generator) -> None:
        """Let rows that are to go by their tags take over the seats of some that go instead.

        goes: numbers of those, below `rows`, the number of all.
        """
        going = set(goes.tolist())
        stays = [row for row in range(rows) if row not in going]
        for row, rival in LossAwareRemoval(self.losses, random).exchanged(goes.tolist(), stays):
            self.seats[row], self.seats[rival] = self.seats[rival], self.seats[row]
            self._taken_over.add(int(self.seats[row]))
