"""What a cluster can compute on: the GPUs of this machine, or why there are none to use."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import torch

from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.base.errors import ClusterError

PROBE_TIMEOUT_S = 120.0
PROBE = """
import json, torch
try:
    import dask_cuda
    lack = ""
except Exception as error:
    lack = f"{type(error).__name__}: {error}"
usable = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if usable else []
print(json.dumps({"names": names, "build": torch.version.cuda or "", "dask_cuda_lack": lack}))
"""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of this machine, as torch and dask-cuda see them."""

    names: tuple[str, ...] = ()
    """Those that torch can use."""
    build: str = ""
    """CUDA version that torch was built for; empty for a CPU build, or where nobody looked."""
    lack: str = ""
    """Why they cannot be used; empty if they can."""
    cure: str = ""
    """What may help; empty where nothing does."""


def rank_device() -> str:
    """The device on which a rank in this process trains, as torch calls it: cuda:0 or cpu.

    Dask-cuda shows every worker its own GPU as the first.
    """
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def find_gpus() -> Gpus:
    """Asks a child process, so that no CUDA context is made in this one; none where no driver shows any."""
    if not glob.glob("/dev/nvidia[0-9]*"):
        return Gpus(lack="this machine shows no NVIDIA device")
    command = [sys.executable, "-c", PROBE]
    environment = child_environment(os.environ)
    try:
        asked = subprocess.run(  # noqa: S603 - our own program
            command, capture_output=True, text=True, check=False, timeout=PROBE_TIMEOUT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        return Gpus(
            lack=f"torch has not told its devices in {PROBE_TIMEOUT_S:.0f} s",
            cure="look whether nvidia-smi answers; the driver may hang",
        )
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        return Gpus(lack=f"torch could not be asked: {last}", cure="install torch again")
    told = json.loads(asked.stdout.splitlines()[-1])
    names, build = tuple(told["names"]), told["build"]
    if not names:
        kind = f"built for CUDA {build}, and finds no device or too old a driver" if build else "a CPU build"
        return Gpus(
            build=build,
            lack=f"this torch is {kind}",
            cure="install the build of torch that fits the driver (nvidia-smi shows its CUDA version)",
        )
    if told["dask_cuda_lack"]:
        extra = f"rehearsal-kit[cuda{build.split('.')[0]}]"
        lack = f"dask-cuda cannot be imported ({told['dask_cuda_lack']})"
        return Gpus(names=names, build=build, lack=lack, cure=f"pip install '{extra}'")
    return Gpus(names=names, build=build)


def choose_devices(kind: str) -> tuple[str, str, int]:
    """("cpu" or "cuda", why, number of GPUs) for a cluster of kind "auto", "cpu" or "cuda"."""
    if kind not in ("auto", "cpu", "cuda"):
        raise ClusterError(f"cluster kind is {kind!r}; it must be 'auto', 'cpu' or 'cuda'.")
    if kind == "cpu":
        return "cpu", "CPU was asked for", 0
    gpus = find_gpus()
    if not gpus.lack:
        count = len(gpus.names)
        return "cuda", f"{count} CUDA device{'s' if count > 1 else ''} found", count
    why = "; ".join(filter(None, (gpus.lack, gpus.cure)))
    if kind == "cuda":
        raise ClusterError(f"no GPU can be used: {why}.")
    return "cpu", why, 0
