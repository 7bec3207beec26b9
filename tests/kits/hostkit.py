"""Hosts of ranks on CPUs that do what a host of ranks on GPUs does, as files in a folder say."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import torch
from distributed import Worker

from rehearsal_kit.cluster.hosted_device import HostedDevice
from rehearsal_kit.cluster.rank_host import PLUGIN, RankHost


class ToldHost(RankHost):
    """Ends processes as on GPUs where the folder has `crash-only`; where it has `hang`, the groups of failed
    ranks are never destroyed. Writes into `left` which processes have destroyed theirs, and of which run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def device(self, kind: str) -> HostedDevice:
        crash_only = (self.folder / "crash-only").exists()
        return HostedDevice(name="cpu", crash_only=crash_only, card=f"GPU-{self._worker.name} (a card)")

    def leave_groups(self) -> None:
        hosted = self._hosted
        assert hosted is not None
        while hosted.failure is not None and (self.folder / "hang").exists():
            time.sleep(0.05)
        with (self.folder / "left").open("a") as file:
            file.write(f"{os.getpid()} {hosted.order.run}\n")
        super().leave_groups()

    def left(self, run: Path) -> set[int]:
        """Processes that have destroyed their groups of this run."""
        lines = (self.folder / "left").read_text().splitlines()
        return {int(process) for process, where in map(str.split, lines) if where == str(run)}


class Hungry(torch.nn.Module):
    """A network that is out of memory, as torch says it, with more than so many samples in one pass."""

    SAYS = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which "
        "1.15 GiB is free. Process 4071 has 4.00 GiB memory in use. Including non-PyTorch memory, this "
        "process has 18.50 GiB memory in use. Of the allocated memory 17.90 GiB is allocated by PyTorch, and "
        "194.87 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
        "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
    )

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.layer = torch.nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training and len(image) > self.most:
            raise RuntimeError(self.SAYS)
        return {"label": self.layer(image)}


class Broken(torch.nn.Module):
    """A network under which the device breaks."""

    def __init__(self, says: str, kind: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.says, self.kind = says, kind
        self.layer = torch.nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        raise self.kind(self.says)


def networks_held(dask_worker: Worker) -> int:
    """For client.run: networks of these tests that something in this process still holds."""
    host: Any = dask_worker.plugins[PLUGIN]
    assert host._hosted is not None
    assert host._hosted.rank is None
    gc.collect()
    return sum(
        type(each).__module__ in ("faultkit", "hostkit") for each in gc.get_objects() if is_network(each)
    )


def is_network(found: object) -> bool:
    return issubclass(type(found), torch.nn.Module)
