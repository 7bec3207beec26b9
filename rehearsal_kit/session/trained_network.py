"""The network that a run has trained, behind its preparation: what it predicts."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from rehearsal_kit.base.errors import SessionError, SettingsError
from rehearsal_kit.buffer.row_layout import tensor_of
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.onnx_export import PreparedNetwork
from rehearsal_kit.record.run_folder import RunFolder

BATCH = 256
"""Samples that are predicted at a time."""
BLOCK_BYTES = 2**26
"""Or fewer, where they are large."""


class TrainedNetwork:
    """A network of a run as it was after the last task that ended, behind the preparation of that run."""

    def __init__(self, run: RunFolder, network: torch.nn.Module) -> None:
        """network: as it was given to the run. SessionError if no task has ended yet."""
        if not run.weights.exists() or not run.inputs.exists():
            raise SessionError(
                f"run {run.path} has no trained weights yet: they are kept after every task and at the end."
            )
        inputs = json.loads(run.inputs.read_text())
        self.field: str = inputs["field"]
        """That goes into the network."""
        self.shape: tuple[int, ...] = tuple(inputs["shape"])
        """Shape of one frame as measured, (row, column), or of one input of a network without preparation."""
        self.dtype: torch.dtype = getattr(torch, inputs["dtype"])
        self._outputs: list[str] = inputs["outputs"]
        given = inputs["preparation"]
        self.preparation = None if given is None else Preparation(**given)
        self.network = copy.deepcopy(network).cpu()
        self.network.load_state_dict(load_file(run.weights))
        self.network.eval()

    @property
    def prepared(self) -> PreparedNetwork:
        """The network from counts, as the detector gives them, to outputs."""
        return PreparedNetwork(self.network, self.preparation).eval()

    def predict(self, frames: Any, *, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Outputs by field, float32 (sample, ...), for counts (sample, row, column) or inputs (sample, ...).

        frames: an array, a tensor, or anything that gives these by slices, such as a dataset of h5py: one
        block of it is in memory at a time. out: by field, what the outputs are written to by slices, such as
        a `numpy.memmap` or a dataset, float32 (sample, ...); it is returned then. None: new arrays.
        SettingsError or SessionError for frames of another shape than those the network was trained on, or
        for an `out` without room for them.
        """
        if out is not None:
            _require_room(out, self._outputs)
        if not hasattr(frames, "shape"):
            frames = np.asarray(frames)
        count, shape = (frames.shape or (0,))[0], tuple(frames.shape[1:])
        if shape != self.shape or not count:
            raise SessionError(
                f"frames have shape {tuple(frames.shape)}; this network was trained on {self.field} of "
                f"(sample, {', '.join(map(str, self.shape))}), and there must be one at least."
            )
        network, room = self.prepared, dict(out or {})
        each = max(1, min(BATCH, BLOCK_BYTES // (math.prod(shape) * self.dtype.itemsize)))
        with torch.no_grad():
            for begin in range(0, count, each):
                block = tensor_of(frames[begin : begin + each], "frames").to(self.dtype, copy=True)
                outputs = self._named(network(block))
                room = room if begin else _room(outputs, count, out)
                for name, tensor in outputs.items():
                    room[name][begin : begin + len(tensor)] = tensor.float().numpy()
        return room

    def _named(self, outputs: Any) -> Mapping[str, torch.Tensor]:
        return outputs if isinstance(outputs, Mapping) else {self._outputs[0]: outputs}

    def example(self) -> torch.Tensor:
        """Two samples of the right shape, for an export: counts between 0 and 100, or numbers from 0 to 1."""
        numbers = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(0))
        return (numbers if self.preparation is None else (100 * numbers).round()).to(self.dtype)


def _require_room(out: object, names: Sequence[str]) -> None:
    """SettingsError for what holds no arrays by field."""
    arrays = out.values() if isinstance(out, Mapping) else [None]
    if not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in arrays):
        example = ", ".join(f"{name!r}: numpy.empty((sample, ...), 'float32')" for name in names)
        raise SettingsError(
            f"out is {out!r:.80}; it must be a dictionary of arrays by the name of the output, such as "
            f"{{{example}}}, or None."
        )


def _room(outputs: Mapping[str, torch.Tensor], count: int, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where the outputs of so many samples are written to: what was given, or new arrays."""
    shapes = {name: (count, *tensor.shape[1:]) for name, tensor in outputs.items()}
    if given is None:
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    found = {name: (tuple(room.shape), str(room.dtype)) for name, room in given.items()}
    if found != (wanted := {name: (shape, "float32") for name, shape in shapes.items()}):
        raise SessionError(f"out has {found}; to hold what is predicted it must have {wanted}.")
    return dict(given)
