"""Named parts in one vector, which a single all-reduce adds up over the ranks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch

from rehearsal_kit.base.errors import RankError

Part = Sequence[float] | Sequence[torch.Tensor]
"""What a rank gives for one part: plain numbers, or tensors that are laid one after the other."""


@dataclass(frozen=True)
class PackedSum:
    """Which parts lie in the vector, in which order and of how many numbers each: the same on all ranks.

    An all-reduce adds up place by place and knows no names: if ranks packed differently, one part would be
    added to another, or the ranks would wait for each other without end. One vector instead of one for each
    part, because every all-reduce costs the ranks a round of messages, however small it is.
    """

    sizes: Mapping[str, int]
    """How many numbers each part has, by name and in the order of the vector."""
    dtype: torch.dtype
    """Dtype of the vector, which must hold the numbers of all parts."""
    device: str

    def pack(self, parts: Mapping[str, Part]) -> torch.Tensor:
        """What this rank adds, in one vector: each number is copied once.

        parts: all of them, in any order. RankError if one has another size than was laid out.
        """
        if parts.keys() != self.sizes.keys():
            raise RankError(f"{[*parts]} were to be added up over the ranks; laid out are {[*self.sizes]}.")
        for name, size in self.sizes.items():
            if (came := _count(parts[name])) != size:
                raise RankError(
                    f"{name} has {came} numbers to be added up over the ranks; {size} were laid out, and the "
                    "other ranks wait for as many."
                )
        row: list[torch.Tensor] = []
        # Plain numbers of parts beside each other reach a GPU by one copy: each would wait for its kernels.
        for of_tensors, names in itertools.groupby(self.sizes, key=lambda name: _of_tensors(parts[name])):
            items = [item for name in names for item in parts[name]]
            if of_tensors:
                row += [torch.as_tensor(item).flatten().to(self.device, self.dtype) for item in items]
            elif items:
                row.append(torch.tensor(items, dtype=self.dtype, device=self.device))
        return torch.cat(row) if row else torch.empty(0, dtype=self.dtype, device=self.device)

    def unpack(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a vector that was packed so, by name: views, each (number,)."""
        return dict(zip(self.sizes, vector.split([*self.sizes.values()]), strict=True))


def _of_tensors(part: Part) -> TypeGuard[Sequence[torch.Tensor]]:
    return any(isinstance(item, torch.Tensor) for item in part[:1])


def _count(part: Part) -> int:
    return sum(tensor.numel() for tensor in part) if _of_tensors(part) else len(part)
