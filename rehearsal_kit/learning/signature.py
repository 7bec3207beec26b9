"""What goes into a network of a run and which of its outputs meet which targets; the same for all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rehearsal_kit.base.errors import TaskError
from rehearsal_kit.buffer.row_layout import IDENTITY, RowLayout, Samples
from rehearsal_kit.learning.metrics import kinds_of

LARGEST_HALF = 65504.0
"""The largest number of float16."""


def targets_of(samples: Samples, inputs: str) -> dict[str, torch.Tensor]:
    """The fields of samples that outputs may meet: all but the input and the identity."""
    return {name: tensor for name, tensor in samples.items() if name not in (inputs, IDENTITY)}


@dataclass(frozen=True)
class Signature:
    """Taken from the first task; every later one must fit it."""

    inputs: str
    """The field that goes into the network."""
    layout: RowLayout
    """Layout of the samples, without their identity; fields in order of their names."""
    outputs: Mapping[str, tuple[int, ...]]
    """Shape of each output of the network that meets a target, without the sample axis."""
    kinds: Mapping[str, str]
    """What each target is that an output meets: "class", "phase" or "values"."""

    @staticmethod
    def of(samples: Samples, outputs: Samples, *, inputs: str) -> Signature:
        """The signature of samples, (sample, ...), and what the network made of some of them, (sample, ...).

        Raises:
            TaskError: no output meets a target, or one has another shape than the target it meets.
        """
        targets = targets_of(samples, inputs)
        met = {name: target for name, target in targets.items() if name in outputs}
        if not met:
            raise TaskError(
                f"the network's outputs are {', '.join(outputs) or 'none'}, the targets "
                f"{', '.join(targets)}; outputs meet targets by name, so at least one name must be the same."
            )
        for name, target in met.items():
            came = tuple(outputs[name].shape[1:])
            if target.is_floating_point() and came != target.shape[1:]:
                raise TaskError(
                    f"the network's output {name!r} has shape {came}, the target {tuple(target.shape[1:])}; "
                    "they must be equal. Does the size of the preparation suit the network?"
                )
            if not target.is_floating_point() and (len(came) != 1 or target.dim() != 1):
                raise TaskError(
                    f"the network's output {name!r} has shape {came} for integer targets of shape "
                    f"{tuple(target.shape[1:])}; classes need logits (sample, class) and one class a sample."
                )
        shapes = {name: tuple(outputs[name].shape[1:]) for name in outputs if name in met}
        return Signature(inputs, _layout(samples), shapes, kinds_of(met))

    @property
    def classes(self) -> dict[str, int]:
        """How many classes the network tells apart, by name of each target that is a class."""
        return {name: self.outputs[name][0] for name, kind in self.kinds.items() if kind == "class"}

    def to_plain(self) -> dict[str, Any]:
        """All of it as plain values, for a checkpoint: ranks that begin there need no task for it."""
        fields = [[f.name, list(f.shape), str(f.dtype).removeprefix("torch.")] for f in self.layout.fields]
        outputs = {name: list(shape) for name, shape in self.outputs.items()}
        return {"inputs": self.inputs, "fields": fields, "outputs": outputs, "kinds": dict(self.kinds)}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Signature:
        """What `to_plain` made."""
        samples = {name: torch.zeros(0, *shape, dtype=_dtype(kind)) for name, shape, kind in plain["fields"]}
        outputs = {name: tuple(shape) for name, shape in plain["outputs"].items()}
        return Signature(plain["inputs"], _layout(samples), outputs, dict(plain["kinds"]))

    def require(self, samples: Samples, *, half: Sequence[str] = ()) -> None:
        """TaskError unless samples have fields, shapes and dtypes as in the first task and sound values.

        half: fields whose values must be within reach of float16, in which the buffer stores them.
        """
        if (came := _layout(samples)) != self.layout:
            raise TaskError(
                f"its samples are {_words(came)}, those of the first task {_words(self.layout)}; names, "
                "shapes and dtypes must be the same in all tasks of a run."
            )
        for name, tensor in samples.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                count = int((~tensor.isfinite()).sum())
                raise TaskError(
                    f"{count} numbers of its field {name} are NaN or infinite; mask them, or leave these "
                    "samples out."
                )
        for name in half:
            tensor = samples.get(name, torch.zeros(0))
            largest = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
            if largest > LARGEST_HALF:
                raise TaskError(
                    f"its {name} reaches {largest:g}, but half stores it as float16, which ends at "
                    f"{LARGEST_HALF:g}; scale it, or leave {name} out of Rehearsal(half=...)."
                )
        for name, classes in self.classes.items():
            if len(samples[name]):
                low, high = int(samples[name].min()), int(samples[name].max())
                if low < 0 or high >= classes:
                    raise TaskError(
                        f"its {name} reaches from {low} to {high}, but the network tells {classes} classes "
                        f"apart, 0 to {classes - 1}; give the network more classes, or renumber them."
                    )

    def no_outputs(self, device: str) -> dict[str, torch.Tensor]:
        """Outputs of no samples: (0, ...)."""
        return {name: torch.zeros(0, *shape, device=device) for name, shape in self.outputs.items()}


def _dtype(name: str) -> torch.dtype:
    kind = getattr(torch, name)
    if not isinstance(kind, torch.dtype):
        raise TaskError(f"{name!r} is no dtype of torch.")
    return kind


def _layout(samples: Samples) -> RowLayout:
    return RowLayout.of({name: samples[name] for name in sorted(samples) if name != IDENTITY})


def _words(layout: RowLayout) -> str:
    return ", ".join(map(str, layout.fields))
