"""The GPUs of this machine that workers can use, or why there are none and what would help."""

from __future__ import annotations

import glob
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rehearsal_kit.base.child_processes import child_environment
from rehearsal_kit.cluster.probed_gpus import Card, Probe
from rehearsal_kit.cluster.worker_variables import in_bus_order

PROBE = "from rehearsal_kit.cluster.gpu_probe import main; main()"
PROBE_TIMEOUT_S = 120.0
"""What a process has to import torch from a slow disk and to ask the driver."""
EXTRAS = {"12": "cuda12", "13": "cuda13"}
"""Extra of this package with the dask-cuda that goes with a build of torch, by its major CUDA version."""
WHEELS = {"12": "cu126", "13": "cu130"}
"""Index of PyTorch with builds for a major CUDA version."""
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that show no GPU."""
WSL = "/dev/dxg"
"""Device file of all GPUs under WSL."""
BUSY_SHARE = 0.1
"""The share of the memory of a GPU from which it is in use: what the driver itself keeps is less."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG slice, that a worker can use."""

    visible: str
    """How CUDA_VISIBLE_DEVICES names it."""
    name: str
    uuid: str = ""
    """That of NVML; empty where it is not known, as of a MIG slice that the site has numbered."""
    users: str = ""
    """Who uses it already, in words."""
    exclusive: bool = False
    """Whether one process alone can use it."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What workers can use on this machine."""

    usable: tuple[Gpu, ...] = ()
    sliced: bool = False
    """Whether these are MIG slices, between which NCCL connects nobody."""
    lack: str = ""
    """Why there are none to use; empty if there are."""
    cure: str = ""
    """What may help; empty where nothing does."""
    plain: str = ""
    """Why workers are plain ones, bound to their GPUs by us; empty where dask-cuda makes them."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What decides about GPUs beside the probe: for tests of machines that are not this one."""

    devices: tuple[str, ...] = field(
        default_factory=lambda: (*glob.glob("/dev/nvidia[0-9]*"), *glob.glob(WSL))
    )
    """Device files of GPUs; under WSL there is one for all."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


class ProbeError(Exception):
    """The probe did not tell anything: what came instead, and what may help."""

    def __init__(self, lack: str, cure: str) -> None:
        super().__init__(lack)
        self.lack, self.cure = lack, cure


def find_gpus(
    surroundings: Surroundings | None = None, ask: Callable[[Mapping[str, str]], Probe] | None = None
) -> Gpus:
    """Asks a process of its own, for a few seconds; where no device file is, it asks nobody.

    surroundings: the device files and variables; None: those of this process. ask: how; None: as said.
    """
    around = Surroundings() if surroundings is None else surroundings
    if not around.devices:
        return Gpus(lack="this machine shows no NVIDIA device")
    try:
        probe = (asked if ask is None else ask)(in_bus_order(around.environ))
    except ProbeError as error:
        return Gpus(lack=error.lack, cure=error.cure)
    if not probe.names:
        lack, cure = _why_none(probe, around)
        return Gpus(lack=lack, cure=cure)
    return _usable(probe, around.environ.get("CUDA_VISIBLE_DEVICES"))


def asked(environ: Mapping[str, str], *, timeout_s: float = PROBE_TIMEOUT_S, program: str = PROBE) -> Probe:
    """What the probe tells in a process with these variables; ProbeError where it tells nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=child_environment(environ),
        )
    except subprocess.TimeoutExpired as error:
        raise ProbeError(
            f"torch has not told its devices in {timeout_s:g} s",
            "look whether nvidia-smi answers; the driver may hang",
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ProbeError(f"torch could not be asked: {last}", "install torch again")
    return Probe.read(done.stdout.splitlines()[-1])


def why_hidden(visible: str | None) -> str:
    """Which value of CUDA_VISIBLE_DEVICES hides all GPUs, in words; empty where this one does not."""
    if visible is None or visible.split(",")[0].strip() not in HIDDEN:
        return ""
    return f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs"


def _why_none(probe: Probe, around: Surroundings) -> tuple[str, str]:
    """Why torch sees no device where a device file is, and what helps."""
    visible = around.environ.get("CUDA_VISIBLE_DEVICES")
    cure_of_hidden = "unset CUDA_VISIBLE_DEVICES, or let it name the GPUs to use, such as 0,1"
    if wrong := _wrong_build(probe):
        return wrong, _install(probe)
    if hidden := why_hidden(visible):
        return hidden, cure_of_hidden
    if wrong_driver := _wrong_driver(probe, around.devices):
        return wrong_driver
    if empty := [card.name for card in probe.cards if card.sliced and not card.slices]:
        cure = "have slices made by nvidia-smi mig -cgi ... -C, or MIG ended by nvidia-smi -mig 0"
        return f"{empty[0]} is in MIG mode and has no slice", cure
    if visible is not None:
        there = f"none of the GPUs of this machine ({len(probe.cards)})" if probe.cards else "no GPU"
        return f"CUDA_VISIBLE_DEVICES={visible!r} names {there}", cure_of_hidden
    return f"torch uses no GPU: {probe.refusal}", "look whether nvidia-smi lists the GPUs"


def _wrong_build(probe: Probe) -> str:
    if probe.rocm:
        return f"this torch ({probe.torch}) is built for ROCm {probe.rocm}, and this package knows CUDA alone"
    return "" if probe.build else f"this torch ({probe.torch}) is a CPU build"


def _wrong_driver(probe: Probe, devices: Sequence[str]) -> tuple[str, str] | None:
    if "too old" in probe.refusal:
        driver = f" ({probe.driver}, for CUDA up to {probe.driver_cuda})" if probe.driver else ""
        lack = f"the NVIDIA driver{driver} is too old for this torch, which is built for CUDA {probe.build}"
        return lack, f"have the driver updated, or {_install(probe)}"
    if "no NVIDIA driver" not in probe.refusal:
        return None
    if tuple(devices) == (WSL,):
        cure = "install NVIDIA's driver in Windows (none inside WSL), then type wsl --update there"
        return "WSL has a device, but torch finds no NVIDIA driver", cure
    cure = "have it installed or loaded; start a container with --gpus all (docker) or --nv (apptainer)"
    return "torch finds no NVIDIA driver", cure


def _install(probe: Probe) -> str:
    """The command that installs a build of torch for the driver."""
    major = probe.driver_cuda.partition(".")[0]
    newest = max(WHEELS, key=int)
    command = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
    if index := WHEELS.get(newest if major and int(major) > int(newest) else major):
        return command + index
    choices = " or ".join(f"{command}{index} (CUDA {cuda})" for cuda, index in WHEELS.items())
    return f"as nvidia-smi shows the CUDA version of the driver: {choices}"


def _usable(probe: Probe, visible: str | None) -> Gpus:
    cards = {card.uuid: card for card in probe.cards}
    names = [] if visible is None else [each.strip() for each in visible.split(",")]
    plain = _why_plain(probe)
    if " MIG " in probe.names[0] or (names and names[0].startswith("MIG-")):
        # CUDA shows one slice to a process, however many there are.
        slices = names or [each for card in probe.cards for each in card.slices] or ["0"]
        usable = tuple(Gpu(visible=each, name=probe.names[0], uuid=each) for each in slices)
        return Gpus(usable=usable, sliced=True, plain=plain or "dask-cuda knows no shared slices")
    names = names or [str(index) for index in range(len(probe.names))]
    found, taken = [], []
    for shown, name, uuid in zip(names, probe.names, probe.uuids, strict=False):
        card = cards.get(uuid, Card(uuid=uuid, name=name))
        if reason := _taken(card):
            taken.append(f"GPU {shown} ({name}) {reason}")
            continue
        found.append(
            Gpu(
                visible=uuid if shown.startswith("GPU-") else shown,  # CUDA takes abbreviations, NVML none
                name=name,
                uuid=uuid,
                users=_users(card),
                exclusive=card.mode == "exclusive",
            )
        )
    if not found:
        cure = "wait until it is free, or have it shared again: nvidia-smi -c DEFAULT"
        return Gpus(lack="; ".join(taken), cure=cure)
    return Gpus(usable=tuple(found), plain=plain)


def _taken(card: Card) -> str:
    if card.mode == "prohibited":
        return "is in compute mode PROHIBITED"
    if card.mode == "exclusive" and card.holders:
        return f"is in compute mode EXCLUSIVE, and {card.holders[0]} has it"
    return ""


def _users(card: Card) -> str:
    if card.holders:
        return ", ".join(card.holders)
    if card.used_mib > BUSY_SHARE * card.total_mib:
        return f"somebody, with {card.used_mib} of {card.total_mib} MiB"
    return ""


def _why_plain(probe: Probe) -> str:
    """Why dask-cuda cannot make the workers, and what would help; empty where it can."""
    major = probe.build.partition(".")[0]
    cure = f"pip install 'rehearsal-kit[{EXTRAS[major]}]'" if major in EXTRAS else ""
    if probe.dask_cuda_lack == "not installed":
        if not cure:
            return f"there is no dask-cuda for CUDA {major}"
        return f"dask-cuda is not installed: {cure}"
    if probe.dask_cuda_lack:
        return f"dask-cuda cannot be imported ({probe.dask_cuda_lack})" + (cure and f": {cure}")
    if probe.nvml_lack:
        inside = "a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        return f"dask-cuda needs NVML, which does not answer ({probe.nvml_lack}); {inside}"
    return ""


def names_of(gpus: Sequence[Gpu]) -> str:
    """These GPUs in words."""
    return ", ".join(gpu.name for gpu in gpus)
