"""Outputs of the network as fields of the sample they were made from, so that they are kept together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rehearsal_kit.buffer.row_layout import RowLayout, Samples
from rehearsal_kit.buffer.staging import rows_of

PREFIX = "outputs."
VERSION = f"{PREFIX}version"
"""The field that says which model made a sample's outputs: the number of steps it had taken; -1: none did."""

NO_MODEL = -1


def with_outputs(
    samples: Samples, outputs: Samples, *, version: int, half: bool = False
) -> dict[str, torch.Tensor]:
    """The samples with one more field `outputs.<name>` for each output, and with the model's version.

    Outputs are float32, (sample, ...), detached; the version is int64 (sample,). A sample with an output that
    is not finite, or too large for float16 where `half` is asked for, counts as one without outputs.
    """
    largest = torch.finfo(torch.float16 if half else torch.float32).max
    fields = {f"{PREFIX}{name}": tensor.detach().float() for name, tensor in outputs.items()}
    some = next(iter(fields.values()))
    sound = torch.ones(len(some), dtype=torch.bool, device=some.device)
    for tensor in fields.values():
        sound &= (tensor.abs() <= largest).reshape(len(tensor), math.prod(tensor.shape[1:])).all(dim=1)
    for name, tensor in fields.items():
        fields[name] = tensor.masked_fill(~sound.view(-1, *[1] * (tensor.dim() - 1)), 0.0)
    made_by = torch.full((len(some),), version, device=some.device).masked_fill_(~sound, NO_MODEL)
    return {**samples, **fields, VERSION: made_by}


def stores_outputs(layout: RowLayout) -> bool:
    """Whether rows of this layout have room for outputs."""
    return any(field.name == VERSION for field in layout.fields)


def for_layout(samples: Samples, outputs: Samples, *, layout: RowLayout, version: int) -> Samples:
    """The samples as a buffer of this layout takes them: with their outputs, or without."""
    if not stores_outputs(layout):
        return samples
    half = any(field.half for field in layout.fields if field.name.startswith(PREFIX))
    return with_outputs(samples, outputs, version=version, half=half)


def without_outputs(samples: Samples) -> dict[str, torch.Tensor]:
    """The samples as they were before their outputs were added."""
    return {name: tensor for name, tensor in samples.items() if not name.startswith(PREFIX)}


def outputs_of(samples: Samples) -> dict[str, torch.Tensor]:
    """The stored outputs under the names that the network gave them; empty where there are none."""
    return {
        name.removeprefix(PREFIX): tensor
        for name, tensor in samples.items()
        if name.startswith(PREFIX) and name != VERSION
    }


def having_outputs(samples: Samples) -> dict[str, torch.Tensor]:
    """Those of the samples whose outputs some model has made; none if they have no such field."""
    if VERSION not in samples:
        return {name: tensor[:0] for name, tensor in samples.items()}
    return of_rows(samples, rows_having_outputs(samples))


def rows_having_outputs(samples: Samples) -> torch.Tensor | None:
    """Which of the samples have outputs that some model has made: int64 (row,) on the CPU; None: all have."""
    made = samples[VERSION].cpu() >= 0
    return None if bool(made.all()) else torch.nonzero(made).flatten()


def of_rows(samples: Samples, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """These rows of samples, int64 (row,), each field where it lies; None: all as they are."""
    return dict(samples) if rows is None else rows_of(samples, rows)


def disowning(samples: Samples, numbers: Samples, spoilt: Sequence[range]) -> Samples:
    """The samples, those with outputs of these versions now without: training has gone back before them.

    numbers: those of their fields that are in host memory. From there their versions come, and there they
    stay: how many samples have outputs decides what is computed, and a step that asked a GPU for that would
    wait for it.
    """
    if VERSION not in samples:
        return samples
    version = numbers[VERSION]
    if spoilt:
        version = version.clone()
    for steps in spoilt:
        version[(version >= steps.start) & (version < steps.stop)] = NO_MODEL
    return {**samples, VERSION: version}


def named_halves(half: Sequence[str], samples: Samples) -> tuple[str, ...]:
    """Fields to store as float16, with "outputs" spelt out as all stored outputs there are."""
    stored = [name for name in samples if name.startswith(PREFIX) and name != VERSION]
    spelt = [part for name in half for part in (stored if name == "outputs" else [name])]
    return tuple(dict.fromkeys(spelt))


def ages(samples: Samples, step: int) -> list[int]:
    """Steps since the outputs of each sample that has any were made."""
    return (
        [step - version for version in samples[VERSION].tolist() if version >= 0]
        if VERSION in samples
        else []
    )
