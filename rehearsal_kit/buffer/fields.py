"""One named tensor of a sample, and how its numbers get into rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SettingsError

Rows = NDArray[np.int64]
"""Numbers of rows, or of samples within a batch: (n,)."""

_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
_BFLOAT16_EXPONENT = 0x7F80
"""Its bits, all of them set in what is not finite."""
LONG_ROW = 16 * 1024
"""Bytes from which copying row by row beats gathering all rows first and scattering them then."""


@dataclass(frozen=True)
class Field:
    """One named tensor of a sample: its shape without the sample axis, and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    half: bool = False
    """Stored and sent as float16, given back in `dtype`."""
    finite: bool = True
    """Whether NaN and infinity are refused (they cannot occur where `dtype` is an integer)."""

    @property
    def stored(self) -> torch.dtype:
        """The dtype in which it is stored and sent."""
        return torch.float16 if self.half else self.dtype

    @cached_property
    def values(self) -> int:
        """Numbers per sample."""
        return math.prod(self.shape)

    @cached_property
    def carrier(self) -> type[np.generic]:
        """What numpy calls the stored dtype; integers as wide where it has no such numbers (bfloat16)."""
        try:
            return torch.empty(0, dtype=self.stored).numpy().dtype.type
        except TypeError:
            return torch.empty(0, dtype=_CARRIERS[self.stored.itemsize]).numpy().dtype.type

    @cached_property
    def checked(self) -> bool:
        """Whether its numbers have to be looked at."""
        return self.finite and self.stored.is_floating_point

    @cached_property
    def plain(self) -> bool:
        """Whether it is stored as it comes, and numpy has such numbers."""
        return not self.half and not self.stored.is_complex and self.stored != torch.bfloat16

    @cached_property
    def size(self) -> int:
        """Bytes per sample."""
        return self.values * self.stored.itemsize

    def __str__(self) -> str:
        half = " (as float16)" if self.half else ""
        return f"{self.name} {self.shape} {str(self.dtype).removeprefix('torch.')}{half}"


def as_stored(field: Field, tensor: torch.Tensor, wanted: Rows) -> tuple[NDArray[np.generic], Rows | None]:
    """The numbers (sample, ...) as they are stored, and which of these samples are wanted; None: all."""
    if not field.plain or not tensor.is_cpu or tensor.requires_grad or not tensor.is_contiguous():
        index = torch.from_numpy(wanted).to(tensor.device)
        chosen = tensor.detach().index_select(0, index).to(field.stored).cpu()
        return chosen.view(_CARRIERS[field.stored.itemsize]).numpy().view(field.carrier), None
    numbers: NDArray[np.generic] = tensor.numpy()
    if field.size < LONG_ROW:
        return numbers.take(wanted, axis=0), None
    return numbers, wanted


def refuse_not_finite(field: Field, numbers: NDArray[Any], *, picked: Rows | None, wanted: Rows) -> None:
    """SettingsError unless all numbers of the wanted samples are finite; the rest as `as_stored` gives it."""
    if picked is None:
        if _is_finite(field, numbers):
            return
    elif all(_is_finite(field, numbers[row]) for row in picked.tolist()):
        return
    values = torch.from_numpy(numbers).view(field.stored)
    rows = range(len(wanted)) if picked is None else picked.tolist()
    for row, source in zip(rows, wanted.tolist(), strict=True):
        bad = ~torch.isfinite(values[row])
        if bad.any():
            raise SettingsError(
                f"{int(bad.sum())} of {field.values} numbers of field {field.name}, sample {source} of the "
                f"batch, are NaN, infinite{' or too large for float16' if field.half else ''}. Mask or skip "
                "such samples, do not name the field in half, or allow them with RowLayout.of(nan=...)."
            )


def _is_finite(field: Field, numbers: NDArray[Any]) -> bool:
    """Whether all numbers are finite; perhaps not, where False."""
    if field.stored in (torch.float32, torch.float64):
        # A finite sum of squares means finite numbers, and costs far less than asking each of them.
        return math.isfinite(np.vdot(numbers, numbers))
    if field.stored == torch.bfloat16:
        return bool((numbers & _BFLOAT16_EXPONENT != _BFLOAT16_EXPONENT).all())
    return field.stored == torch.float16 and bool(np.isfinite(numbers).all())


def part_of(rows: torch.Tensor, field: Field, begin: int) -> torch.Tensor:
    """(sample, ...): this field of packed rows on any device, which begins at so many of its numbers."""
    column = rows.view(field.stored)[:, begin : begin + field.values]
    parted: torch.Tensor = column.unflatten(1, field.shape or (1,)).reshape(len(rows), *field.shape)
    return parted.to(field.dtype)


def bytes_of(field: Field, values: torch.Tensor) -> torch.Tensor:
    """uint8 (sample, byte): this field of samples, (sample, ...), as it stands in rows; on their device."""
    if not field.values:
        return values.new_empty((len(values), 0), dtype=torch.uint8)
    stored = values.to(field.stored).resolve_conj().resolve_neg().reshape(len(values), field.values)
    if stored.stride(1) != 1:
        # Bytes of numbers that are no neighbours cannot be seen; a single column counts as in one piece.
        stored = stored.clone(memory_format=torch.contiguous_format)
    return stored.view(torch.uint8)


def copy_rows(
    target: NDArray[np.generic], source: NDArray[np.generic], *, slots: Rows | None, picked: Rows | None
) -> None:
    """Set target[slots] to source[picked], (row, ...) both; long rows singly, without gathering them."""
    if picked is None or target[:1].nbytes < LONG_ROW:
        target[... if slots is None else slots] = source if picked is None else source.take(picked, axis=0)
        return
    places = range(len(picked)) if slots is None else slots.tolist()
    for slot, row in zip(places, picked.tolist(), strict=True):
        target[slot] = source[row]
