"""The collectives of one draw: a small header from everyone, then all rows at once."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from rehearsal_kit.draw import DrawPlan
from rehearsal_kit.errors import RankError
from rehearsal_kit.groups import Groups


@dataclass(frozen=True, kw_only=True)
class Header:
    """What every rank tells all others before each exchange; whole numbers of 64 bits."""

    generation: int
    branch: int
    step: int
    settings: int
    """Digest of the settings in force."""
    command: int
    """Number of the newest command applied."""
    stored: int
    """Samples in this rank's store: the draw is planned from these counts and from nothing else."""


def gather_headers(header: Header, groups: Groups) -> list[Header]:
    """The headers of all ranks; RankError unless they agree on everything but what they store."""
    if groups.exchange is None:
        return [header]
    mine = torch.tensor(astuple(header), dtype=torch.int64)
    rows = [torch.empty_like(mine) for _ in range(groups.ranks)]
    dist.all_gather(rows, mine, group=groups.exchange)
    headers = [
        Header(generation=g, branch=b, step=t, settings=d, command=c, stored=s)
        for g, b, t, d, c, s in (row.tolist() for row in rows)
    ]
    for rank, other in enumerate(headers):
        if astuple(other)[:-1] != astuple(header)[:-1]:
            raise RankError(
                f"ranks {groups.rank} and {rank} have drifted apart: {header} against {other}; "
                "this generation ends, because training on would give different networks."
            )
    return headers


def exchange_rows(outgoing: torch.Tensor, plan: DrawPlan, groups: Groups) -> torch.Tensor:
    """Carry out a plan with one uneven all-to-all.

    outgoing: uint8 (row, byte), the rows of `plan.sent_by` this rank in that order.
    Returns uint8 (row, byte): what this rank drew, in order of owner. A rank with nothing to send or to
    get takes part all the same.
    """
    if groups.exchange is None:
        return outgoing
    _, sends = plan.sent_by(groups.rank)
    receives = plan.received_by(groups.rank)
    incoming = torch.empty((sum(receives), outgoing.shape[1]), dtype=torch.uint8)
    dist.all_to_all_single(
        incoming, outgoing, output_split_sizes=receives, input_split_sizes=sends, group=groups.exchange
    )
    return incoming
