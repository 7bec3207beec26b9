"""A stand-in for NVML on a machine without GPUs; the GPUs that it tells are in the variable FAKE_GPUS (JSON).

Each is a dictionary; what it does not say is as in `USUAL`. Only for processes of tests, by PYTHONPATH.
"""

# ruff: noqa: N801, N802, N818 - the names are those of NVML

from __future__ import annotations

import json
import os
from types import SimpleNamespace

NVML_DEVICE_MIG_DISABLE, NVML_DEVICE_MIG_ENABLE = 0, 1
USUAL = {"name": "Fake GPU", "used": 2**28, "processes": [], "mode": 0, "slices": None}


class NVMLError(Exception):
    pass


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_Unknown(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NotFound(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


def _gpus():
    return [
        {**USUAL, "uuid": f"GPU-fake-{index}", "index": index, **told}
        for index, told in enumerate(json.loads(os.environ["FAKE_GPUS"]))
    ]


def nvmlInit():
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")


def nvmlSystemGetDriverVersion():
    return "580.65"


def nvmlSystemGetCudaDriverVersion():
    return 13000


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    if not 0 <= int(index) < len(_gpus()):
        raise NVMLError("Invalid Argument")
    return _gpus()[int(index)]


def nvmlDeviceGetHandleByUUID(uuid):
    wanted = uuid.decode() if isinstance(uuid, bytes) else uuid
    found = [gpu for gpu in _gpus() if gpu["uuid"] == wanted or wanted in (gpu["slices"] or ())]
    if not found:
        raise NVMLError_NotFound(wanted)
    return found[0]


def nvmlDeviceGetIndex(gpu):
    return gpu["index"]


def nvmlDeviceGetUUID(gpu):
    return gpu["uuid"]


def nvmlDeviceGetName(gpu):
    return gpu["name"]


def nvmlDeviceIsMigDeviceHandle(gpu):
    return "parent" in gpu


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu):
    return gpu["parent"]


def nvmlDeviceGetMigMode(gpu):
    return [int(gpu["slices"] is not None)] * 2


def nvmlDeviceGetMaxMigDeviceCount(gpu):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(device, index):
    if index >= len(device["slices"]):
        raise NVMLError_NotFound(index)
    return {**device, "uuid": device["slices"][index], "slices": None, "parent": device}


def nvmlDeviceGetComputeMode(gpu):
    return gpu["mode"]


def nvmlDeviceGetMemoryInfo(gpu):
    return SimpleNamespace(total=80 * 2**30, used=gpu["used"], free=80 * 2**30 - gpu["used"])


def nvmlDeviceGetCpuAffinity(gpu, words):
    return [1, *[0] * (words - 1)]


def nvmlDeviceGetComputeRunningProcesses(gpu):
    return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in gpu["processes"]]


def nvmlDeviceGetUtilizationRates(gpu):
    return SimpleNamespace(gpu=1, memory=1)
