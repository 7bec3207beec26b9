"""What a run has come to: the trained network, what it predicts, its table, its export."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from rehearsal_kit.base.errors import SessionError, SettingsError
from rehearsal_kit.buffer.row_layout import tensor_of
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.onnx_export import PreparedNetwork
from rehearsal_kit.record.records import UNTRAINED, CheckpointKept, CheckpointTaken, TaskSetAside, Unevaluated
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline

BATCH = 256
"""Samples that are predicted at a time."""
BLOCK_BYTES = 2**26
"""Or fewer, where they are large."""
SAID = 3
"""Tasks that were set aside that a message names."""


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


def results_table(timeline: Timeline, branch: int | None = None) -> pd.DataFrame:
    """One row per task: test error right after it was trained and now, and all metrics of now.

    branch: of a run that was rolled back; None: the newest.

    "error" is the share of wrong classes, or the mean absolute error summed over the fields; NaN where a
    task was not evaluated (yet). "stability gap" is there where `Training.stability_every` asked for it: the
    largest watched error of earlier tasks in the first 50 steps of this one, relative to that before; 1 where
    none became worse. "set aside" and "not evaluated" are there where a task was, or could not be
    any more, and say why. Index: number of the task; missing for one set aside before it had a number.
    """
    timeline = timeline.lineage(branch)
    errors, metrics = timeline.scores(lambda scores: scores.trained("test")), timeline.metrics("test")
    before, _ = timeline.untaught()
    gaps = timeline.stability_gaps()
    rows: list[dict[str, Any]] = []
    for task, arrived in timeline.tasks().items():
        of_task = errors.get(task, {})
        known = [of_task[after] for after in sorted(of_task)]
        learned = of_task.get(task)
        rows.append({
            "task": task,
            "name": arrived.name,
            "training samples": arrived.training,
            "error before": before[task] if task < len(before) else None,
            "error when learned": learned,
            "error now": known[-1] if known else None,
            "change": known[-1] - learned if known and learned is not None else None,
            **({"stability gap": gaps.get(task)} if gaps else {}),
            **(metrics[task] if task < len(metrics) else {}),
        })  # fmt: skip
    aside = {task: record.reason for task, record in timeline.set_aside().items()}
    for column, reasons in (("set aside", aside), ("not evaluated", left_open(timeline, "test"))):
        for row in rows if reasons else ():
            row[column] = reasons.get(row["task"], "")
    rows += [
        {"task": None, "name": record.name, "set aside": record.reason} for record in _unnumbered(timeline)
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    if table["task"].isna().any():
        table["task"] = table["task"].astype("Int64")
    table = table.set_index("task")
    words = [name for name in ("name", "set aside", "not evaluated") if name in table]
    table[words] = table[words].fillna("")
    numbers = [name for name in table.columns if name not in words]
    return table.assign(**{name: pd.to_numeric(table[name]) for name in numbers})


def left_open(timeline: Timeline, split: str) -> dict[int, str]:
    """Reasons, by task, why it could not be evaluated when last tried; not those that could be since."""
    errors = timeline.scores(lambda scores: scores.last(split))
    return {
        record.task: record.reason
        for record in timeline.records(Unevaluated)
        if record.split == split and record.after > errors.get(record.task, UNTRAINED - 1)
    }


def left_out(timeline: Timeline) -> str:
    """Which tasks were set aside, and why, of the first ones; empty if none was."""
    records = [*timeline.set_aside().values(), *_unnumbered(timeline)]
    if not records:
        return ""
    first = "; ".join(f"{record.name}: {record.reason}" for record in records[:SAID])
    more = f"; and {len(records) - SAID} more" if len(records) > SAID else ""
    return f"{len(records)} task{'s were' if len(records) > 1 else ' was'} set aside: {first}{more}."


def _unnumbered(timeline: Timeline) -> list[TaskSetAside]:
    """Tasks that were set aside when they arrived, before they had a number.

    Not those that had one and are no longer set aside: another branch trains them after all.
    """
    known = set(timeline.set_aside().values())  # of runs of earlier versions, whose records have no number
    return [
        record for record in timeline.records(TaskSetAside) if record.task is None and record not in known
    ]


def checkpoints_table(timeline: Timeline) -> pd.DataFrame:
    """One row per checkpoint that is whole on disk. Index: its number."""
    kept = {record.checkpoint: record for record in timeline.records(CheckpointKept)}
    gone = {number for record in kept.values() for number in record.removed}
    rows = [
        {
            "checkpoint": taken.checkpoint,
            "branch": taken.branch,
            "step": taken.step,
            "watched error": kept[taken.checkpoint].error,
            "bytes": kept[taken.checkpoint].bytes,
            "taken": pd.Timestamp(taken.time, unit="s", tz="UTC"),
        }
        for taken in timeline.records(CheckpointTaken)
        if taken.checkpoint in kept and taken.checkpoint not in gone
    ]
    columns = ["checkpoint", "branch", "step", "watched error", "bytes", "taken"]
    return pd.DataFrame(rows, columns=columns).set_index("checkpoint")
