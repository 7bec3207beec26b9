"""What the ranks tell each other between the forward and the backward pass of a step.

All of it is known to their hosts, and goes over the group of the hosts: where a GPU computes, nobody waits
for it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.learning.packed_sum import PackedSum

TERMS = 16
"""Most terms that a strategy's loss may have: the ranks tell each other of so many, used or not."""


@dataclass(frozen=True)
class Saying:
    """What one rank says after its forward pass."""

    counts: Sequence[int]
    """Samples of each term."""
    samples: int
    """That went through the network."""
    changed: Sequence[bool]
    """Which buffers of the network its forward pass has changed; equally many on all ranks."""
    failed: bool


@dataclass(frozen=True)
class Told:
    """What all ranks have said; the same on all of them."""

    failed: bool
    counts: list[int]
    """Samples of each term, over all ranks."""
    samples: list[int]
    """That went through the network of each rank, in order of rank."""
    changed: list[bool]
    """Which buffers of the network any rank has changed."""
    alike: bool
    """Whether the loss had equally many terms on all ranks, as far as none failed."""

    @property
    def having(self) -> list[int]:
        """The ranks that had samples, in order."""
        return [rank for rank, count in enumerate(self.samples) if count]


def meeting(said: Saying, groups: ProcessGroups) -> Told:
    """Tell the others, and hear what they say; all ranks must call it."""
    terms = len(said.counts)
    sizes = {
        "failed": 1,
        "terms": 1,
        "squared terms": 1,
        "samples": groups.ranks,
        "counts": TERMS,  # as many as there may be: the ranks do not know yet that they agree
        "changed": len(said.changed),
    }
    vector = PackedSum(sizes, dtype=torch.int64, device="cpu")
    packed = vector.pack(
        {
            "failed": [said.failed],
            "terms": [terms],
            "squared terms": [terms**2],
            "samples": [said.samples if rank == groups.rank else 0 for rank in range(groups.ranks)],
            "counts": [*said.counts, *[0] * (TERMS - terms)],
            "changed": said.changed,
        }
    )
    told = {name: part.tolist() for name, part in vector.unpack(groups.sum(packed)).items()}
    (failed,), (total,), (squares,) = told["failed"], told["terms"], told["squared terms"]
    alike = bool(failed) or total**2 == groups.ranks * squares  # exactly if all have equally many
    return Told(
        failed=bool(failed) or not alike,
        counts=told["counts"][:terms],
        samples=told["samples"],
        changed=[bool(count) for count in told["changed"]],
        alike=alike,
    )
