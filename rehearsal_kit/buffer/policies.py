"""Which samples a store keeps once it is full: group quotas, a global reservoir, or the newest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.randomness import key
from rehearsal_kit.buffer.fields import Rows
from rehearsal_kit.buffer.group_index import GroupIndex
from rehearsal_kit.buffer.shares import equal_shares

_SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31, 1))
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

OPEN = 2**63 - 1
"""The threshold of a reservoir that has not been full yet: every tag lies below it."""

PolicyState = Mapping[str, int | float]
"""What a policy remembers beside the rows of its store: finite numbers by name."""


@dataclass(frozen=True)
class Intake:
    """What decides, before a store is asked, which samples of a mini-batch are worth offering to it."""

    full: bool
    threshold: int = OPEN


class AbstractPolicy(ABC):
    """Chooses what goes when something comes. A sample that is held already is none of its business.

    One of your own is a class here and an entry in `POLICIES`, with its name and what stays by it in
    `base/settings.py`. What it has to remember it tells by `state`: checkpoints keep that, whatever it is.
    """

    name: ClassVar[str]
    """Name of the policy, as in `Rehearsal.policy`."""
    needs_identity: ClassVar[bool] = False
    """Whether it must know a sample again, by a field sample_id; only then `fit` and `may_stay` are asked."""
    takes_count: ClassVar[bool] = True
    """Whether a full store is offered exactly as many candidates as the settings say."""

    def __init__(self, seed: int = 0) -> None:
        """seed: of the run, the same on all ranks."""
        self.threshold = OPEN
        """Only samples whose tag lies below it may be held, on all ranks alike."""

    @abstractmethod
    def candidates(self, identities: Rows | int, *, count: int, intake: Intake, random: _Random) -> Rows:
        """Which samples of a mini-batch to offer: identities of its samples, or only their number.

        count: the number of candidates (c). intake: all that is known of the store; the policy that is asked
        is another object than that of the store, and its own state is that of the beginning.
        """

    @abstractmethod
    def make_room(self, group: int, index: GroupIndex, *, capacity: int, uniform: float) -> int | None:
        """The row that a new sample of `group` replaces in a full store; None turns the sample away."""

    @abstractmethod
    def kept(self, index: GroupIndex, *, capacity: int, random: _Random) -> list[int]:
        """The rows that stay when the store gets another capacity, in their new order."""

    def fit(self, identities: Rows, capacity: int) -> None:  # noqa: B027 - most have no threshold to lower
        """Lower `threshold` until at most `capacity` of these distinct samples may stay."""

    def may_stay(self, identities: Rows) -> NDArray[np.bool_]:
        """Which of these samples, held or arriving, may be held."""
        return np.ones(len(identities), dtype=bool)

    def state(self) -> PolicyState:
        """All that it remembers and later choices depend on, under the same names at any time."""
        return {}

    def restore(self, state: PolicyState) -> None:  # noqa: B027 - most remember nothing
        """Go on with what `state` or `dealt` gave."""

    def dealt(self, states: Sequence[PolicyState], ranks: int) -> list[PolicyState]:
        """What each of so many ranks goes on with, once the rows of those with these states are dealt anew.

        Default: as this policy, which has just begun; what is held is its past.
        """
        return [self.state() for _ in range(ranks)]

    def ages(self, rows: int) -> Rows | None:
        """How many of so many rows came before each, so that they are dealt by age; None: by group."""
        return None


_Random = np.random.Generator


class Quotas(AbstractPolicy):
    """Every group has the same share of the store: capacity / number of groups that are there.

    A new group takes its share from the largest one; a group that has its share replaces a row of its own,
    uniformly chosen. So no group pushes out another beyond an equal share, however long it is (after
    Bouvier et al. 2025, who fix the number of groups in advance).
    """

    name = "quotas"

    def candidates(self, identities: Rows | int, *, count: int, intake: Intake, random: _Random) -> Rows:
        """All while there is room, then exactly `count`, uniformly chosen."""
        return _some(identities, count, full=intake.full, random=random)

    def make_room(self, group: int, index: GroupIndex, *, capacity: int, uniform: float) -> int:
        """A row of the largest group, or of its own once that has its share."""
        rows: Sequence[int] = index.members.get(group, ())
        if len(rows) < max(1, capacity // (len(index.members) + (not rows))):
            rows = index.members[index.largest()]
        return rows[int(uniform * len(rows))]

    def kept(self, index: GroupIndex, *, capacity: int, random: _Random) -> list[int]:
        """Rows leave the largest group first, uniformly chosen."""
        sizes = index.sizes()
        shares, rest = equal_shares(list(sizes.values()), capacity)
        gone: set[int] = set()
        for (group, size), share in zip(sizes.items(), shares.tolist(), strict=True):
            stays = share + (size > share and rest > 0)
            rest -= stays - share
            positions = random.choice(size, size=size - stays, replace=False)
            gone.update(index.row(group, int(position)) for position in positions)
        return [row for row in range(len(index)) if row not in gone]


class FirstInFirstOut(AbstractPolicy):
    """The store holds the newest samples of its rank: the oldest goes first."""

    name = "fifo"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.oldest = 0
        """The row that goes next; ages fall from it upwards, around the end of the store."""

    def candidates(self, identities: Rows | int, *, count: int, intake: Intake, random: _Random) -> Rows:
        """All while there is room, then exactly `count`, uniformly chosen."""
        return _some(identities, count, full=intake.full, random=random)

    def make_room(self, group: int, index: GroupIndex, *, capacity: int, uniform: float) -> int:
        """The oldest row."""
        row, self.oldest = self.oldest, (self.oldest + 1) % capacity
        return row

    def kept(self, index: GroupIndex, *, capacity: int, random: _Random) -> list[int]:
        """The newest rows, oldest first."""
        order = [(self.oldest + i) % len(index) for i in range(len(index))]
        self.oldest = 0
        return order[max(0, len(order) - capacity) :]

    def state(self) -> PolicyState:
        """The row that goes next."""
        return {"oldest": self.oldest}

    def restore(self, state: PolicyState) -> None:
        """Go on with that row."""
        self.oldest = int(state["oldest"])

    def ages(self, rows: int) -> Rows | None:
        """Counted from the row that goes next, around the end of the store."""
        return (np.arange(rows) - self.oldest) % rows


class Reservoir(AbstractPolicy):
    """Every distinct sample ever offered on any rank is equally likely to be held.

    Each sample has a tag, a hash of the seed and of its field `sample_id`, and is held if and only if the
    tag lies below a threshold that all ranks share and that only falls (bottom-k sampling: Cohen and Kaplan,
    "Summarizing data using bottom-k sketches", PODC 2007; here with one threshold for all ranks). A store
    that overflows lowers the threshold a little further than it must, so that trimming, which looks at all
    rows, is rare: it runs between 31/32 and all of its capacity.
    """

    name = "reservoir"
    needs_identity = True
    takes_count = False
    HEADROOM = 32

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._key = np.frombuffer(key(seed, "reservoir"), dtype=np.uint64)

    def candidates(self, identities: Rows | int, *, count: int, intake: Intake, random: _Random) -> Rows:
        """All whose tag lies below the threshold, whatever `count` is."""
        if isinstance(identities, int):
            raise SettingsError(
                "samples have no field sample_id; the reservoir needs one, an int64 that is different for "
                "every distinct sample of the whole stream. Add it, or take the policy quotas."
            )
        return np.flatnonzero(self.tags(identities) < intake.threshold)

    def make_room(self, group: int, index: GroupIndex, *, capacity: int, uniform: float) -> int:
        """Never asked: `fit` has made room before."""
        raise AssertionError

    def kept(self, index: GroupIndex, *, capacity: int, random: _Random) -> list[int]:
        """All: `fit` has made room before."""
        return list(range(len(index)))

    def tags(self, identities: Rows) -> NDArray[np.int64]:
        """Uniform on 0 to 2^63 - 1, one per sample: the finaliser of SplitMix64 (Steele et al. 2014)."""
        words = (identities.view(np.uint64) ^ self._key[0]) + self._key[1]
        words ^= words >> _SHIFTS[0]
        words *= _FACTORS[0]
        words ^= words >> _SHIFTS[1]
        words *= _FACTORS[1]
        words ^= words >> _SHIFTS[2]
        tags: NDArray[np.int64] = (words >> _SHIFTS[3]).view(np.int64)
        return tags

    def fit(self, identities: Rows, capacity: int) -> None:
        """Lower the threshold until at most `capacity` of these distinct samples lie below it."""
        tags = self.tags(identities)
        if (tags < self.threshold).sum() > capacity:
            keep = capacity - capacity // self.HEADROOM
            self.threshold = int(np.partition(tags, keep)[keep])

    def may_stay(self, identities: Rows) -> NDArray[np.bool_]:
        """Those whose tag lies below the threshold."""
        below: NDArray[np.bool_] = self.tags(identities) < self.threshold
        return below

    def state(self) -> PolicyState:
        """The threshold."""
        return {"threshold": self.threshold}

    def restore(self, state: PolicyState) -> None:
        """Go on with that threshold."""
        self.threshold = int(state["threshold"])

    def dealt(self, states: Sequence[PolicyState], ranks: int) -> list[PolicyState]:
        """The lowest threshold for all."""
        return [{"threshold": min(state["threshold"] for state in states)} for _ in range(ranks)]


POLICIES: Mapping[str, type[AbstractPolicy]] = {
    kind.name: kind for kind in (Quotas, Reservoir, FirstInFirstOut)
}
"""Kinds of policies by their names, as in `Rehearsal.policy`."""


def new_policy(name: str, seed: int) -> AbstractPolicy:
    """The policy of this name; SettingsError, with those there are, for any other."""
    if name not in POLICIES:
        raise SettingsError(f"policy {name!r} is unknown; it must be one of {', '.join(POLICIES)}.")
    return POLICIES[name](seed)


def _some(identities: Rows | int, count: int, *, full: bool, random: _Random) -> Rows:
    offered = identities if isinstance(identities, int) else len(identities)
    if not full or count >= offered:
        return np.arange(offered)
    return random.permutation(offered)[:count]
