"""What a process of its own sees of the GPUs here: asks torch, NVML and dask-cuda, and tells it as JSON.

Run by `gpus.py`, so that no CUDA context is made in a kernel and a driver that hangs stops nobody.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from dataclasses import asdict
from typing import Any

import psutil
import torch

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.cluster.probed_gpus import Card, Probe

MODES = {1: "exclusive", 2: "prohibited", 3: "exclusive"}
"""Compute modes of NVML in which not every process may use a GPU; 1 is exclusive for a thread."""


def look() -> Probe:
    """Ask NVML first: what torch makes on a GPU would be found there."""
    return Probe(
        torch=torch.__version__,
        build=torch.version.cuda or "",
        rocm=torch.version.hip or "",
        **_nvml(),
        **_torch(),
        dask_cuda_lack=_lack_of("dask_cuda"),
    )


def main() -> None:
    """The whole process."""
    print(json.dumps(asdict(look())))


def _torch() -> dict[str, Any]:
    if not torch.version.cuda:
        return {}
    try:
        torch.cuda.init()
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:
        return {"refusal": str(error).strip().partition("\n")[0]}
    return {
        "names": tuple(each.name for each in found),
        "uuids": tuple(f"GPU-{each.uuid}" for each in found),
    }


def _nvml() -> dict[str, Any]:
    if lack := _lack_of("pynvml"):
        return {"nvml_lack": lack}
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        cuda = int(nvml.nvmlSystemGetCudaDriverVersion())
        cards = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return {
            "driver": str(nvml.nvmlSystemGetDriverVersion()),
            "driver_cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "cards": tuple(_card(nvml, card) for card in cards),
        }
    except nvml.NVMLError as error:
        return {"nvml_lack": f"{type(error).__name__}: {error}"}


def _card(nvml: Any, card: Any) -> Card:
    mode, used, total, sliced = "shared", 0, 0, False
    holders: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    # A GPU or a WSL that does not tell one of these tells the others all the same.
    with contextlib.suppress(nvml.NVMLError):
        mode = MODES.get(nvml.nvmlDeviceGetComputeMode(card), "shared")
    with contextlib.suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(card)
        used, total = int(memory.used) // MIB, int(memory.total) // MIB
    with contextlib.suppress(nvml.NVMLError):
        running = nvml.nvmlDeviceGetComputeRunningProcesses(card)
        holders = tuple(_holder(each) for each in running if each.pid != os.getpid())
    with contextlib.suppress(nvml.NVMLError):
        sliced = bool(nvml.nvmlDeviceGetMigMode(card)[0])
        slices = _slices(nvml, card) if sliced else ()
    return Card(
        uuid=str(nvml.nvmlDeviceGetUUID(card)),
        name=str(nvml.nvmlDeviceGetName(card)),
        mode=mode,
        used_mib=used,
        total_mib=total,
        holders=holders,
        sliced=sliced,
        slices=slices,
    )


def _slices(nvml: Any, card: Any) -> tuple[str, ...]:
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with contextlib.suppress(nvml.NVMLError):  # no slice has this number
            found.append(str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))))
    return tuple(found)


def _holder(running: Any) -> str:
    name = "unseen from here"  # of another container
    with contextlib.suppress(psutil.Error):
        name = psutil.Process(running.pid).name()
    memory = "" if running.usedGpuMemory is None else f", {int(running.usedGpuMemory) // MIB} MiB"
    return f"process {running.pid} ({name}{memory})"


def _lack_of(module: str) -> str:
    """Why a module cannot be imported; "not installed" where it is not there at all."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"{type(error).__name__}: {error}"
    except Exception as error:  # whatever a broken installation raises
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""
