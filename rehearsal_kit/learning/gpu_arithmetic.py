"""How a GPU computes while a run goes on: float32 in full and, where that is asked for, the same bits.

By itself a GPU does neither: convolutions of float32 numbers are made with ten bits of their fractions
(TF32), cuDNN takes whatever algorithm it finds fastest, and sums are added up in the order in which threads
come by. On a CPU with one thread per rank nothing of this is so, and nothing is changed here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.base.errors import SettingsError, said_where

VARIABLES: Mapping[str, str] = {
    # docs.nvidia.com/cuda/cublas, "Results Reproducibility": with a workspace for each stream.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # Sums that switches make differ from call to call (its maintainers, github.com/NVIDIA/nccl/issues/1497).
    "NCCL_NVLS_ENABLE": "0",
}
"""What libraries of CUDA read once in a process, when they are used first: the same for all its runs."""
ALSO_TOLD = ("NCCL_ALGO", "NCCL_PROTO")
"""Further variables that decide in which order NCCL adds up."""
DRIVER = Path("/proc/driver/nvidia/version")
NO_VERSION = "does not have a deterministic implementation"
"""What torch says of an operation that cannot compute the same bits each time."""


def set_variables() -> None:
    """Set `VARIABLES` in this process; to be called before it uses a GPU, as they have no effect after."""
    if not torch.cuda.is_initialized():
        os.environ.update(VARIABLES)


@contextlib.contextmanager
def gpu_arithmetic(device: str, *, deterministic: bool) -> Iterator[None]:
    """Compute like this on a GPU until the end; then the process is again as it was. Nothing on a CPU.

    device: as torch calls it, such as "cuda:0". deterministic: as in `Training`. SettingsError where this
    process has used a GPU before with other `VARIABLES`.
    """
    if device == "cpu":
        yield
        return
    set_variables()
    wrong = {name: os.environ.get(name) for name, value in VARIABLES.items() if os.environ.get(name) != value}
    if deterministic and wrong:
        raise SettingsError(
            f"this process has used its GPU with {_words(wrong)}; for the same bits each time it is to be "
            f"{_words(VARIABLES)}. Start the worker with these variables, or give "
            "Training(deterministic=False)."
        )
    with _full_float32(deterministic=deterministic), _algorithms(deterministic=deterministic):
        yield


def device_versions(device: str) -> dict[str, str]:
    """What decides about the bits of a rank on this device, besides the versions of a run.

    With how it computes now, so to be called within `gpu_arithmetic`.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return {"device": kind}
    return {
        "device": kind,
        "GPU": torch.cuda.get_device_name(device),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": _driver(),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        **{name: os.environ.get(name, "not set") for name in (*VARIABLES, *ALSO_TOLD)},
    }


def said_of_network(error: Exception) -> str:
    """What an error of a network or a strategy says, with a cure where it comes of `gpu_arithmetic`."""
    words = said_where(error)
    if NO_VERSION not in str(error):
        return words
    return (
        f"{words}. Put an operation in its place that computes the same bits each time (torch lists the "
        "others under use_deterministic_algorithms), or give Training(deterministic=False): then nobody can "
        "promise that ranks that begin again, or a replay, come to the same weights"
    )


@contextlib.contextmanager
def _full_float32(*, deterministic: bool) -> Iterator[None]:
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    chosen = {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark and not deterministic,
        "deterministic": cudnn.deterministic or deterministic,
        "allow_tf32": False,
    }
    with cudnn.flags(**chosen):
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            if before != "highest":
                torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _algorithms(*, deterministic: bool) -> Iterator[None]:
    if not deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Whoever reads what nobody has written is wrong anyhow, and a buffer would take its whole memory at once.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def _driver() -> str:
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", DRIVER.read_text())
    except OSError:  # as in WSL2
        found = None
    return found[0] if found else "unknown"


def _words(variables: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name}={value}" for name, value in variables.items())
