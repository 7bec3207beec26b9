"""Buffers of other libraries, each used as its documentation says; imported only where they are measured."""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch
from torch.utils.data import TensorDataset

from rehearsal_kit.bench.store.workload import Contestant, TaskStream, Workload, both, portions, some_of

NEEDED_BY_TORCHVISION = ("nms", "qnms")


class TorchRL:
    """`torchrl.data.ReplayBuffer` with rows in memory; 14 of 56 samples are picked here, as its users do.

    reservoir: rows are replaced by a reservoir written around it; else by TorchRL's own writer, which
    replaces the oldest. ImportError if torchrl or tensordict is not installed.
    """

    def __init__(self, workload: Workload, *, reservoir: bool) -> None:
        data = importlib.import_module("torchrl.data")
        self._rows_of: Any = importlib.import_module("tensordict").TensorDict
        logging.getLogger("torchrl").setLevel(logging.WARNING)
        self._workload = workload
        self._stream = TaskStream(workload)
        self._seen = 0
        self._buffer: Any = data.ReplayBuffer(
            storage=data.LazyTensorStorage(workload.capacity), batch_size=workload.representatives
        )
        for count in portions(workload.capacity, workload.candidates):
            self._buffer.extend(self._candidates(count))
        phases = both(self.update_reservoir if reservoir else self.update, self.draw)
        self.reset()
        self.contestant = Contestant(phases, reset=self.reset)
        """The buffer as one of those that are measured."""

    def reset(self) -> None:
        """Go back to as many samples seen as the capacity; the rows stay as they are."""
        self._seen = self._workload.capacity

    def update(self) -> None:
        """The oldest rows go."""
        self._buffer.extend(self._candidates(self._workload.candidates))

    def update_reservoir(self) -> None:
        """The sample at position s of the stream goes to row floor(rand x s) if there is such a row."""
        count = self._workload.candidates
        rows = self._candidates(count)
        slots = (torch.rand(count) * (self._seen + torch.arange(1, count + 1))).long()
        kept = slots < self._workload.capacity
        self._buffer[slots[kept]] = rows[kept]
        self._seen += count

    def draw(self) -> Any:
        """A TensorDict of rows, drawn with replacement."""
        return self._buffer.sample()

    def _candidates(self, count: int) -> Any:
        return self._rows_of(some_of(self._stream.next(), count), batch_size=[count])


class Avalanche:
    """`ReservoirSamplingBuffer` of avalanche-lib, updated with 14 picked samples; rows are drawn by index.

    It stores references to whatever it was offered, not copies. ImportError if it cannot be imported.
    """

    def __init__(self, workload: Workload) -> None:
        self._operators = _with_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about solvers that nothing here uses
            storage = importlib.import_module("avalanche.training.storage_policy")
            self._dataset_of: Any = importlib.import_module("avalanche.benchmarks.utils").AvalancheDataset
        self._workload = workload
        self._stream = TaskStream(workload)
        self._buffer: Any = storage.ReservoirSamplingBuffer(max_size=workload.capacity)
        for count in portions(workload.capacity, workload.candidates):
            self._update(count)
        self.contestant = Contestant(both(self.update, self.draw))
        """The buffer as one of those that are measured."""

    def update(self) -> None:
        """Offer the candidates of one mini-batch."""
        self._update(self._workload.candidates)

    def draw(self) -> list[torch.Tensor]:
        """One tensor per field: (drawn, ...)."""
        held = self._buffer.buffer
        wanted = torch.randint(len(held), (self._workload.representatives,)).tolist()
        return [torch.stack(column) for column in zip(*(held[row] for row in wanted), strict=True)]

    def _update(self, count: int) -> None:
        samples = some_of(self._stream.next(), count)
        self._buffer.update_from_dataset(self._dataset_of([TensorDataset(*samples.values())]))


def torchrl_fifo(workload: Workload) -> Contestant:
    """TorchRL as it comes."""
    return TorchRL(workload, reservoir=False).contestant


def torchrl_reservoir(workload: Workload) -> Contestant:
    """TorchRL with a reservoir written around it."""
    return TorchRL(workload, reservoir=True).contestant


def avalanche(workload: Workload) -> Contestant:
    """Avalanche's reservoir."""
    return Avalanche(workload).contestant


def _with_torchvision() -> torch.library.Library | None:
    # Avalanche imports torchvision, whose build for CUDA fails beside a torch for CPUs: its compiled
    # operators do not load, and its Python side then asks for their declarations. Nothing here calls them.
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in NEEDED_BY_TORCHVISION:
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
        return operators  # which are gone again with this object
    return None
