"""How the named tensors of a sample lie side by side in one row of 64-bit words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.buffer.fields import (
    Field,
    Rows,
    as_stored,
    bytes_of,
    copy_rows,
    part_of,
    refuse_not_finite,
)

Samples = Mapping[str, torch.Tensor]
"""Named tensors of equal length along their first axis: (sample, ...)."""

Words = NDArray[np.int64]
"""Packed samples in host memory: (sample, word)."""

_Tensors = dict[str, tuple[torch.Size, torch.dtype]]
"""Shape and dtype of named tensors."""

_SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}

IDENTITY = "sample_id"
"""The field, one int64 per sample, by which a sample is known again; optional but for the reservoir."""
WORD = 8


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of all parts, one after the other; of a single one its own, so that none is held twice."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def tensor_of(array: torch.Tensor | NDArray[Any], what: str) -> torch.Tensor:
    """What somebody gave, as a tensor on the CPU: of the same numbers, perhaps in the same memory.

    Arrays of numpy may be read only, and in any order of bytes and axes. Unsigned integers longer than 8
    bits, with which torch can compute next to nothing, become signed ones that hold the same numbers.
    SettingsError, beginning with `what`, for what holds no numbers, or longer ones than torch has.
    """
    if isinstance(array, torch.Tensor):
        tensor = array.detach().cpu()
    else:
        given = np.asarray(array)
        if given.dtype.kind not in "biufc" or given.dtype.itemsize > (16 if given.dtype.kind == "c" else 8):
            raise SettingsError(
                f"{what} is {type(array).__name__} of {given.dtype}; it must be a tensor or an array of "
                "numbers: bool, integers, floating point of at most 8 bytes, or complex of at most 16."
            )
        # Not as torch.as_tensor does, which warns of what is read only, and refuses foreign byte orders.
        tensor = torch.from_numpy(np.require(given, given.dtype.newbyteorder("="), ["C", "W"]))
    if tensor.dtype not in _SIGNED:
        return tensor
    signed = tensor.to(_SIGNED[tensor.dtype])
    if tensor.dtype == torch.uint64 and signed.numel() and int(signed.min()) < 0:
        raise SettingsError(f"{what} is uint64 and exceeds int64; give numbers below 2^63.")
    return signed


@dataclass(frozen=True)
class RowLayout:
    """How the named tensors of a sample lie side by side in one row of 64-bit words.

    One row per sample means that storing, drawing and sending are one copy each, whatever the fields. The
    widest numbers come first, so that every field of every row can be read in place.
    """

    fields: tuple[Field, ...]

    @staticmethod
    def of(samples: Samples, *, half: Sequence[str] = (), nan: Sequence[str] = ()) -> RowLayout:
        """The layout of these samples; they may be empty along the sample axis.

        half: fields stored as float16. nan: floating fields in which NaN and infinity are allowed.
        SettingsError if there is no field, a name is unknown, or `half` names what is not floating.
        """
        unknown = [name for name in (*half, *nan) if name not in samples]
        whole = [name for name in half if name in samples and not samples[name].is_floating_point()]
        if not samples or unknown or whole or any(not tensor.dim() for tensor in samples.values()):
            raise SettingsError(
                f"samples have fields {', '.join(samples) or '(none)'}; half names {list(half)}, nan names "
                f"{list(nan)}. Every field needs a first axis for the samples, every name must be one of "
                "the fields, and half is for floating fields only."
            )
        return RowLayout(
            tuple(
                Field(name, tuple(t.shape[1:]), t.dtype, half=name in half, finite=name not in nan)
                for name, t in samples.items()
            )
        )

    @cached_property
    def row_bytes(self) -> int:
        """Bytes per sample."""
        widest = max(WORD, *(field.stored.itemsize for field in self.fields))
        return max(1, -(-sum(field.size for field in self.fields) // widest)) * widest

    @property
    def words(self) -> int:
        """64-bit words per sample."""
        return self.row_bytes // WORD

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each field begins in a row, in bytes."""
        offsets, offset = {}, 0
        for field in self._by_width:
            offsets[field.name] = offset
            offset += field.size
        return offsets

    def check(self, samples: Samples) -> int:
        """How many samples these are; SettingsError unless names, shapes and dtypes are this layout's."""
        came = {name: (t.shape, t.dtype) for name, t in samples.items()}
        count, expected = self._newest[0]
        if came == expected:  # as nearly always: nothing is to be compared one by one
            return count
        lengths = {shape[0] if shape else -1 for shape, _ in came.values()}
        count = lengths.pop() if len(lengths) == 1 else -1
        if count < 0 or came != (expected := self._expected(count)):
            given = ", ".join(f"{name} {tuple(t.shape)} {t.dtype}" for name, t in samples.items())
            raise SettingsError(
                f"samples came as {given or 'nothing'}; this buffer holds "
                f"{', '.join(map(str, self.fields))}, each with one more axis in front, equally long in all "
                "fields. All tasks of a run need the same names, shapes and dtypes: convert them before they "
                "are offered."
            )
        self._newest[0] = count, expected
        return count

    def accept(self, samples: Samples, chosen: Rows | None = None) -> Accepted:
        """These samples, or the chosen ones among them, checked and ready to be copied into rows.

        SettingsError if names, shapes or dtypes are not this layout's, or if a value is not finite where it
        must be or does not fit into float16.
        """
        count = self.check(samples)
        wanted = np.arange(count) if chosen is None else chosen
        columns = []
        for field in self.fields:
            values, picked = as_stored(field, samples[field.name], wanted)
            if field.checked:
                refuse_not_finite(field, values, picked=picked, wanted=wanted)
            columns.append((field.name, values, picked))
        return Accepted(self, tuple(columns))

    def pack(self, samples: Samples, chosen: Rows | None = None) -> Words:
        """int64 (sample, word): a copy of these samples, or of the chosen ones; errors as `accept`."""
        return self.accept(samples, chosen).packed().rows

    def pack_there(self, samples: Samples) -> torch.Tensor:
        """int64 (sample, word): rows as `pack` makes them, of samples on any one device, not looked at there.

        What does not fit into float16 becomes infinite.
        """
        parts = [bytes_of(field, samples[field.name]) for field in self._by_width]
        padding = self.row_bytes - sum(field.size for field in self.fields)
        if padding:
            parts.append(parts[0].new_zeros((len(parts[0]), padding)))
        return torch.cat(parts, dim=1).view(torch.int64)

    def checked(self, rows: Words, *, chosen: Rows | None = None) -> Packed:
        """Rows that `pack_there` made, in host memory now; SettingsError for values that `accept` refuses.

        chosen: which samples of a mini-batch they are, for what is said of them; None: the first ones.
        """
        wanted = np.arange(len(rows)) if chosen is None else chosen
        records = rows.view(self.record)[:, 0]
        for field in self.fields:
            if field.checked:
                refuse_not_finite(field, records[field.name], picked=None, wanted=wanted)
        return Packed(self, rows)

    def unpack(self, rows: Words) -> dict[str, torch.Tensor]:
        """The samples that `pack` made rows of: views of `rows`, but for fields stored as float16."""
        # numpy cuts views faster than torch does, most of all with cold caches.
        records = rows.view(self.record)[:, 0]
        samples = {field.name: torch.from_numpy(records[field.name]) for field in self.fields}
        for field in self._converted:
            samples[field.name] = samples[field.name].view(field.stored).to(field.dtype)
        return samples

    def unpack_there(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples that `pack` made rows of, as `unpack` gives them, for rows on any device."""
        return {field.name: part_of(rows, field, begin) for field, begin in self._places}

    def numbers(self, rows: Words) -> dict[str, torch.Tensor]:
        """The fields of packed rows that are one int64 a sample, as views: (sample,)."""
        records = rows.view(self.record)[:, 0]
        return {name: torch.from_numpy(records[name]) for name in self._whole}

    def number_table(self, rows: Words) -> Words:
        """The same in one table, a copy of its own: (sample, number)."""
        return rows.take(self.number_words, axis=1)

    def number_table_there(self, rows: torch.Tensor) -> torch.Tensor:
        """`number_table` of packed rows on any device."""
        columns = [rows[:, word : word + 1] for word in self.number_words]
        return torch.cat([rows[:, :0], *columns], dim=1)

    def named_numbers(self, table: Words) -> dict[str, torch.Tensor]:
        """`numbers` of a `number_table`."""
        return {name: torch.from_numpy(table[:, place]) for place, name in enumerate(self._whole)}

    def sound_there(self, rows: torch.Tensor) -> torch.Tensor:
        """Which of packed rows on any device have only values that `accept` takes: bool (sample,)."""
        sound = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for field, begin in self._places:
            if field.checked:
                sound &= part_of(rows, field, begin).isfinite().reshape(len(rows), field.values).all(dim=1)
        return sound

    @cached_property
    def number_words(self) -> list[int]:
        """The word of a row in which each field lies that is one int64 a sample."""
        return [self.offsets[name] // WORD for name in self._whole]

    @cached_property
    def converts(self) -> bool:
        """Whether fields are given back in another dtype than stored, so that they are copies of rows."""
        return any(field.half for field in self.fields)

    @property
    def identity_number(self) -> int | None:
        """Which column of a `number_table` is `sample_id`; None: none."""
        return self._whole.index(IDENTITY) if self.has_identity else None

    def _expected(self, count: int) -> _Tensors:
        """Shape and dtype of each field of so many samples."""
        return {field.name: (torch.Size((count, *field.shape)), field.dtype) for field in self.fields}

    @cached_property
    def _newest(self) -> list[tuple[int, _Tensors]]:
        """One entry: the number of samples that `check` was asked about last, and what it expected."""
        return [(0, self._expected(0))]

    @cached_property
    def _by_width(self) -> list[Field]:
        """The fields in the order in which they lie in a row."""
        return sorted(self.fields, key=lambda field: -field.stored.itemsize)

    @cached_property
    def _places(self) -> list[tuple[Field, int]]:
        """Where each field begins in a row, counted in its numbers."""
        return [(field, self.offsets[field.name] // field.stored.itemsize) for field in self.fields]

    @cached_property
    def record(self) -> np.dtype[np.void]:
        """One row, as numpy calls it: the fields by their names."""
        return np.dtype(
            {
                "names": [field.name for field in self.fields],
                "formats": [(field.carrier, field.shape) for field in self.fields],
                "offsets": [self.offsets[field.name] for field in self.fields],
                "itemsize": self.row_bytes,
            }
        )

    @cached_property
    def _converted(self) -> list[Field]:
        """Fields that numpy does not know, or that are given back in another dtype than stored."""
        return [field for field in self.fields if field.half or field.stored == torch.bfloat16]

    @cached_property
    def _whole(self) -> list[str]:
        """Fields that are one int64 a sample."""
        return [field.name for field in self.fields if not field.shape and field.dtype == torch.int64]

    @cached_property
    def identity_place(self) -> int | None:
        """Which of the fields is `sample_id` (one int64), by which samples are known again; None: none."""
        known = [(field.name, field.shape, field.dtype) for field in self.fields]
        return known.index((IDENTITY, (), torch.int64)) if (IDENTITY, (), torch.int64) in known else None

    @property
    def has_identity(self) -> bool:
        """Whether samples are known again."""
        return self.identity_place is not None

    def identities(self, samples: Samples) -> NDArray[np.int64] | None:
        """`sample_id` of each sample: (sample,); None where this layout has none."""
        return samples[IDENTITY].cpu().numpy() if self.has_identity else None

    def packed_identities(self, rows: Words) -> NDArray[np.int64] | None:
        """`sample_id` of each packed row, as a view: (row,); None where this layout has none."""
        if not self.has_identity:
            return None
        numbers: Words = rows[:, self.offsets[IDENTITY] // WORD]
        return numbers


@dataclass(frozen=True)
class Accepted:
    """Samples that fit a layout; long rows are not copied before `copy_into`."""

    layout: RowLayout
    columns: tuple[tuple[str, NDArray[np.generic], Rows | None], ...]
    """Name of each field, its numbers, (sample, ...), and which of those are meant; None: all of them."""

    def __len__(self) -> int:
        """How many there are."""
        _, numbers, picked = self.columns[0]
        return len(numbers if picked is None else picked)

    @property
    def identities(self) -> NDArray[np.int64] | None:
        """(sample,): `sample_id` of each, where there is one."""
        place = self.layout.identity_place
        if place is None:
            return None
        _, numbers, picked = self.columns[place]
        identities: NDArray[np.int64] = (numbers if picked is None else numbers[picked]).view(np.int64)
        return identities

    def some(self, chosen: Rows) -> Accepted:
        """The chosen ones among them."""
        parts = ((name, n, chosen if picked is None else picked[chosen]) for name, n, picked in self.columns)
        return Accepted(self.layout, tuple(parts))

    def packed(self) -> Packed:
        """The same as rows of their own."""
        rows = np.zeros((len(self), self.layout.words), dtype=np.int64)
        self.copy_into(rows)
        return Packed(self.layout, rows)

    def copy_into(self, rows: Words, slots: Rows | None = None, which: Rows | None = None) -> None:
        """rows[slots] = these samples[which], None: all in order. rows: int64 (row, word).

        Of equal slots the last wins.
        """
        records = rows.view(self.layout.record)[:, 0]
        for name, numbers, picked in self.columns:
            wanted = picked
            if which is not None:
                wanted = which if picked is None else picked[which]
            copy_rows(records[name], numbers, slots=slots, picked=wanted)


@dataclass(frozen=True)
class Packed:
    """Samples that `RowLayout.pack` made rows of."""

    layout: RowLayout
    rows: Words

    def __len__(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def identities(self) -> NDArray[np.int64] | None:
        """(sample,): `sample_id` of each, where there is one."""
        return self.layout.packed_identities(self.rows)

    def some(self, chosen: Rows) -> Packed:
        """The chosen ones among them."""
        return Packed(self.layout, self.rows.take(chosen, axis=0))

    def packed(self) -> Packed:
        """Itself."""
        return self

    def copy_into(self, rows: Words, slots: Rows, which: Rows | None = None) -> None:
        """rows[slots] = these samples[which], None: all in order; of equal slots the last wins."""
        rows[slots] = self.rows if which is None else self.rows.take(which, axis=0)
