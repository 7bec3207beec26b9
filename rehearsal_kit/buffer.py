"""The part of the rehearsal buffer that one rank holds: rows of bytes, and which group each belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rehearsal_kit.errors import SettingsError

Samples = Mapping[str, torch.Tensor]
"""Named tensors of equal length along their first axis: (sample, ...)."""


@dataclass(frozen=True)
class Field:
    """One named tensor of a sample: its shape without the sample axis, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes per sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class RowLayout:
    """How the named tensors of a sample lie side by side in one row of bytes.

    One row per sample means that storing, drawing and sending are one copy each, whatever the fields.
    """

    fields: tuple[Field, ...]

    @staticmethod
    def of(samples: Samples) -> RowLayout:
        """The layout of these samples; they may be empty along the sample axis."""
        return RowLayout(tuple(Field(name, tuple(t.shape[1:]), t.dtype) for name, t in samples.items()))

    @property
    def row_bytes(self) -> int:
        """Bytes per sample."""
        return sum(field.size for field in self.fields)

    def pack(self, samples: Samples) -> torch.Tensor:
        """uint8 (sample, byte), a copy; SettingsError if shape, dtype or names are not this layout's."""
        if (came := RowLayout.of(samples)) != self:
            raise SettingsError(
                f"samples have fields {came.fields}, but this buffer holds {self.fields}; "
                "all tasks of a run need the same names, shapes and dtypes."
            )
        count = len(samples[self.fields[0].name])
        columns = [
            samples[field.name].detach().cpu().contiguous().reshape(count, -1).view(torch.uint8)
            for field in self.fields
        ]
        return torch.cat(columns, dim=1)

    def unpack(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples that `pack` made rows of; nothing shares memory with `rows`."""
        columns = rows.split([field.size for field in self.fields], dim=1)
        return {
            field.name: column.contiguous().clone().view(field.dtype).reshape(len(rows), *field.shape)
            for field, column in zip(self.fields, columns, strict=True)
        }


class RehearsalBuffer:
    """Bounded memory of past samples on one rank, with a quota for each group.

    Groups (tasks, or classes) appear as they come. While there is room everything offered is kept. After
    that a group with less than its share, capacity / number of groups, takes a uniformly chosen row from
    the largest group; a group with its share replaces a uniformly chosen row of its own. So no task pushes
    out another beyond an equal share, however long it is.

    Memory: capacity x `RowLayout.row_bytes` and a few numbers per row.
    """

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self._rows = torch.empty((capacity, layout.row_bytes), dtype=torch.uint8)
        self._slots: dict[int, list[int]] = {}
        self._stored = 0

    def __len__(self) -> int:
        """Samples held; they lie in rows 0 to len - 1."""
        return self._stored

    @property
    def full(self) -> bool:
        """Whether every row is taken."""
        return self._stored == self.capacity

    def group_sizes(self) -> dict[int, int]:
        """Samples held of each group."""
        return {group: len(slots) for group, slots in self._slots.items()}

    def offer(self, samples: Samples, groups: Sequence[int], random: np.random.Generator) -> None:
        """Store all of these samples, each in a free row or in place of another.

        groups: the group of each sample. Where two samples of one offer meet in a row the later one stays.
        """
        if not self.capacity:
            return
        source_of = {self._slot_for(group, random): source for source, group in enumerate(groups)}
        if not source_of:
            return
        rows = self.layout.pack(samples)
        slots = torch.tensor(list(source_of))
        self._rows.index_copy_(0, slots, rows.index_select(0, torch.tensor(list(source_of.values()))))

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """uint8 (row, byte): copies of these rows, all of them below len(self)."""
        return self._rows.index_select(0, torch.from_numpy(rows))

    def _slot_for(self, group: int, random: np.random.Generator) -> int:
        own = self._slots.setdefault(group, [])
        if not self.full:
            slot = self._stored
            self._stored += 1
            own.append(slot)
        elif len(own) < max(1, self.capacity // len(self._slots)):
            largest = max(self._slots.values(), key=len)
            chosen = int(random.integers(len(largest)))
            largest[chosen], largest[-1] = largest[-1], largest[chosen]
            slot = largest.pop()
            own.append(slot)
        else:
            slot = own[int(random.integers(len(own)))]
        return slot
