"""The collectives of one draw: a small header from everyone, then all rows at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import torch

from rehearsal_kit.base.digests import number_of
from rehearsal_kit.base.errors import OtherRankError, RankError, SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.draw_plan import DrawPlan
from rehearsal_kit.buffer.row_losses import Replayed

Empty = Callable[[int], torch.Tensor]
LOCAL = ("stored", "groups", "threshold", "replayed", "placed", "error")


class Header(NamedTuple):
    """What every rank tells all others before each exchange; whole numbers of 64 bits."""

    generation: int
    branch: int
    step: int
    settings: int
    """Digest of the settings in force."""
    command: int
    """Number of the newest command applied."""
    representatives: int
    distillation: int
    capacity: int
    """Samples over all ranks."""
    stored: int
    """Samples in this rank's store: the draw is planned from these counts and from nothing else."""
    groups: int
    """Groups in this rank's store."""
    threshold: int
    """Below which the tags of this rank's samples lie (reservoir)."""
    fewer: int = 0
    """How many of the last ranks draw one representative less."""
    fewer_again: int = 0
    """The same of the second draw."""
    replayed: int = 0
    """Losses of samples that this rank has to tell (loss-aware removal)."""
    placed: int = 0
    """Where the rows of this rank lie, as `row_placement` numbers it."""
    error: int = 0
    """1 where this rank cannot go on: then nobody does, and nobody waits for it."""


_NAMES = Header._fields
_COMMON: Callable[[Header], Sequence[int]] = itemgetter(
    *(place for place, name in enumerate(_NAMES) if name not in LOCAL)
)


class Exchange(Protocol):
    """What the distributed buffer asks of the other ranks; called in the same order on all of them."""

    @property
    def rank(self) -> int:
        """This rank's number."""

    @property
    def ranks(self) -> int:
        """How many there are."""

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of all ranks, in order of rank; equally many on each."""

    def rows(self, outgoing: torch.Tensor, plan: DrawPlan, empty: Empty) -> torch.Tensor:
        """Carry out a plan: outgoing rows are those of `plan.sent_by`, those that come are in order of owner.

        int64 (row, word) both; `empty` makes the memory for so many rows.
        """

    def carries(self, device: torch.device) -> bool:
        """Whether rows on this device can be exchanged among the sums of gradients; the same on all ranks."""

    def begin_rows(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> Callable[[], object]:
        """Begin there what `rows` does, into memory that there is; what is returned waits.

        Called by the thread that trains, at the same place among the sums of all ranks. sent, received: by
        the plan, for and from each rank.
        """


class GroupExchange:
    """The exchange over the groups of a generation; of a rank that is alone, one with itself."""

    def __init__(self, groups: ProcessGroups) -> None:
        self.rank = groups.rank
        self.ranks = groups.ranks
        self._groups = groups

    def gather(self, numbers: Sequence[int]) -> list[list[int]]:
        """One all-gather of 64-bit integers."""
        return self._groups.gather_numbers(numbers)

    def rows(self, outgoing: torch.Tensor, plan: DrawPlan, empty: Empty) -> torch.Tensor:
        """One uneven all-to-all of bytes. A rank with nothing to send or to get takes part all the same.

        The numbers per pair of ranks come from the plan on both sides, so they agree.
        """
        if self.ranks == 1:
            return outgoing
        incoming, (_, sends) = empty(plan.drawn_by(self.rank)), plan.sent_by(self.rank)
        self._groups.exchange_rows(outgoing, incoming, sent=sends, received=plan.received_by(self.rank))
        return incoming

    def carries(self, device: torch.device) -> bool:
        """Whether they do so with the gradients; the same on all ranks."""
        return self._groups.carries(device)

    def begin_rows(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> Callable[[], object]:
        """The same all-to-all; a rank with no row to send or get takes part, too."""
        return self._groups.begin_exchange(outgoing, incoming, sent=sent, received=received)


def require_agreement(values: object, exchange: Exchange) -> None:
    """SettingsError on every rank unless all ranks give values that print alike (frozen settings do)."""
    mine = number_of(hashlib.sha256(repr(values).encode()).hexdigest())
    everyone = [number for (number,) in exchange.gather([mine])]
    if len(set(everyone)) > 1:
        others = [rank for rank, number in enumerate(everyone) if number != everyone[0]]
        raise SettingsError(
            f"rank {', '.join(map(str, others))} gave other settings than rank 0; this is rank "
            f"{exchange.rank} with {values!r}. Names, shapes and dtypes of samples, all settings of "
            "rehearsal and the seed must be the same on all ranks."
        )


def gather_headers(header: Header, exchange: Exchange) -> list[Header]:
    """The headers of all ranks; RankError unless they agree on everything that must be common."""
    headers = [Header(*row) for row in exchange.gather(header)]
    failed = [rank for rank, other in enumerate(headers) if other.error]
    if failed:
        raise OtherRankError(
            f"rank {', '.join(map(str, failed))} could not store what it was offered; see its error."
        )
    common = _COMMON(header)
    for rank, other in enumerate(headers):
        if _COMMON(other) != common:
            differing = [
                f"{name} {getattr(header, name)} against {getattr(other, name)}"
                for name in _NAMES
                if name not in LOCAL and getattr(header, name) != getattr(other, name)
            ]
            raise RankError(
                f"ranks {exchange.rank} and {rank} have drifted apart: {', '.join(differing)}; this "
                "generation ends, because training on would give different networks. All ranks must make the "
                "same calls with the same settings."
            )
    return headers


def gather_newest(newest: Sequence[int], exchange: Exchange) -> set[int]:
    """The groups of the newest mini-batches of all ranks together."""
    widest = max(count for (count,) in exchange.gather([len(newest)]))
    # Not filled up with a number of a group: any number may be one.
    mine = [len(newest), *newest, *[0] * (widest - len(newest))]
    return {group for count, *groups in exchange.gather(mine) for group in groups[:count]}


def gather_losses(replayed: Replayed, headers: Sequence[Header], exchange: Exchange) -> list[Replayed]:
    """What the ranks have learned of samples that they replayed, in order of rank; none where nobody has."""
    widest = max(header.replayed for header in headers)
    if not widest:
        return []
    mine = np.zeros((2, widest), dtype=np.int64)
    mine[:, : len(replayed)] = replayed.identities, replayed.losses.view(np.int64)
    everyone = [np.array(row).reshape(2, -1) for row in exchange.gather(mine.flatten().tolist())]
    return [
        Replayed(table[0, : header.replayed], table[1, : header.replayed].view(np.float64))
        for table, header in zip(everyone, headers, strict=True)
    ]


def gather_groups(
    sizes: Mapping[int, int], headers: Sequence[Header], exchange: Exchange
) -> list[dict[int, int]]:
    """Samples that every rank holds of each group, in order of rank."""
    widest = max(header.groups for header in headers)
    mine = np.zeros((widest, 2), dtype=np.int64)
    mine[: len(sizes)] = list(sizes.items()) or np.zeros((0, 2))
    everyone = [np.array(row).reshape(-1, 2) for row in exchange.gather(mine.flatten().tolist())]
    return [
        {int(group): int(size) for group, size in table[: header.groups]}
        for table, header in zip(everyone, headers, strict=True)
    ]
