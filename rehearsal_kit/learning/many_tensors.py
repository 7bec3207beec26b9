"""Many small tensors at once: a GPU is given one kernel for all of a dtype, not one for each.

A network has dozens of buffers and weights of some hundred numbers; launching a kernel takes the host longer
than such a kernel runs. Each number comes out as if the tensors were taken one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

Tensors = Sequence[torch.Tensor]


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


def draw_towards(tensors: Tensors, values: Tensors, part: float) -> None:
    """Move floating or complex tensors in place, this part of the way to values of the same kinds."""
    with torch.no_grad():
        for moved, those in _alike(tensors, values):
            torch._foreach_lerp_(moved, those, part)


def put_back(tensors: Tensors, before: Tensors, *, where: torch.Tensor) -> None:
    """Write what they were before into tensors in place if `where`, a number (), is above 0; no host asks."""
    with torch.no_grad():
        for now, was in _alike(tensors, before):
            rows = torch.where(where > 0, _row(was), _row(now)).split([tensor.numel() for tensor in now])
            torch._foreach_copy_(now, [row.view(t.shape) for row, t in zip(rows, now, strict=True)])


def changes(before: Tensors, now: Tensors) -> list[torch.Tensor]:
    """Whether any tensor differs from what it was, NaN as NaN: bool (), one for all of a dtype and device."""
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
    """Both, as far as dtypes and devices are the same: what one kernel can take."""
    groups: dict[object, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for one, other in zip(first, second, strict=True):
        kind = (one.dtype, one.device, other.dtype, other.device)
        ones, others = groups.setdefault(kind, ([], []))
        ones.append(one)
        others.append(other)
    return iter(groups.values())
