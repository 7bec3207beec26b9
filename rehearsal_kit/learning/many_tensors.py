"""Many small tensors at once: a GPU is given one kernel for all of a dtype, not one for each.

A network has dozens of buffers and weights of some hundred numbers; launching a kernel takes the host longer
than such a kernel runs. Each number comes out as if the tensors were taken one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rehearsal_kit.base.byte_units import MIB

Tensors = Sequence[torch.Tensor]
PIECE_BYTES = 16 * MIB
"""Tensors that are taken at once: what is joined or kept beside them takes memory of the device. A larger one
is taken alone, and is worth a kernel of its own."""


def copies(tensors: Tensors) -> list[torch.Tensor]:
    """A detached copy of each."""
    copied = [torch.empty_like(tensor) for tensor in tensors]
    overwrite(copied, tensors)
    return copied


def overwrite(tensors: Tensors, values: Tensors) -> None:
    """Write values, of the same shapes, into tensors in place."""
    with torch.no_grad():
        for into, those in _alike(tensors, values):
            torch._foreach_copy_(into, those)


def draw_towards(
    tensors: Tensors, values: Tensors, part: float, *, unless: torch.Tensor | None = None
) -> None:
    """Move floating or complex tensors in place, this part of the way to values of the same kinds.

    unless: a number (): where it is above 0, they stay as they are; no host asks.
    """
    with torch.no_grad():
        for moved, those in _alike(tensors, values):
            stay = None if unless is None else copies(moved)
            torch._foreach_lerp_(moved, those, part)
            if stay is not None and unless is not None:
                put_back(moved, stay, where=unless)


def put_back(tensors: Tensors, before: Tensors, *, where: torch.Tensor) -> None:
    """Write what they were before into tensors in place if `where`, a number (), is above 0; no host asks."""
    with torch.no_grad():
        for now, was in _alike(tensors, before):
            rows = torch.where(where > 0, _row(was), _row(now)).split([tensor.numel() for tensor in now])
            torch._foreach_copy_(now, [row.view(t.shape) for row, t in zip(rows, now, strict=True)])


def changes(before: Tensors, now: Tensors) -> list[torch.Tensor]:
    """Whether any tensor differs from what it was, NaN as NaN: bool (), one for some of them at a time."""
    found = []
    for each in _alike(before, now):
        was, became = map(_row, each)
        found.append(~((was == became) | (was.isnan() & became.isnan())).all())
    return found


def has_mean(tensor: torch.Tensor) -> bool:
    """Whether there is a mean of several such tensors: there is none of counters."""
    return tensor.is_floating_point() or tensor.is_complex()


def _row(tensors: Tensors) -> torch.Tensor:
    rows = [tensor.detach().reshape(-1) for tensor in tensors]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _alike(first: Tensors, second: Tensors) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Both, piece by piece: what one kernel can take, of one dtype and device."""
    pieces: dict[object, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    filled: dict[object, int] = {}
    for one, other in zip(first, second, strict=True):
        kind = (one.dtype, one.device, other.dtype, other.device)
        size = one.numel() * one.element_size()
        if kind in pieces and filled[kind] + size > PIECE_BYTES:
            yield pieces.pop(kind)
        if kind not in pieces:
            pieces[kind], filled[kind] = ([], []), 0
        ones, others = pieces[kind]
        ones.append(one)
        others.append(other)
        filled[kind] += size
    yield from pieces.values()
