"""What is known of the GPUs of a machine, as the process that looks at them tells it; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rehearsal_kit.base.checked_values import record_of


@dataclass(frozen=True, kw_only=True)
class Card:
    """One GPU of this machine, as NVML sees it."""

    uuid: str
    name: str
    mode: str = "shared"
    """shared, exclusive (one process at a time) or prohibited."""
    used_mib: int = 0
    total_mib: int = 0
    holders: tuple[str, ...] = ()
    """The processes that use it, in words."""
    sliced: bool = False
    """Whether it is in MIG mode."""
    slices: tuple[str, ...] = ()
    """UUIDs of its MIG slices."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the process saw; texts that say why not are empty where all is well."""

    torch: str
    """Version of torch."""
    build: str = ""
    """CUDA version that torch was built for; empty for another build."""
    rocm: str = ""
    """ROCm version that torch was built for."""
    refusal: str = ""
    """Why torch uses no GPU, in its own words."""
    names: tuple[str, ...] = ()
    """The names of the devices that torch sees, in its order."""
    uuids: tuple[str, ...] = ()
    """Those of the same devices, as NVML writes them."""
    nvml_lack: str = ""
    """Why NVML could not be asked."""
    driver: str = ""
    """Version of the driver."""
    driver_cuda: str = ""
    """Newest CUDA version that the driver can run."""
    cards: tuple[Card, ...] = ()
    """All GPUs of this machine, in the order of their places on the bus."""
    dask_cuda_lack: str = ""
    """Why dask-cuda cannot be imported."""

    @staticmethod
    def read(text: str) -> Probe:
        """What `gpu_probe.main` wrote."""
        told = json.loads(text)
        cards = tuple(record_of(Card, card) for card in told.pop("cards"))
        probe: Probe = record_of(Probe, {**told, "cards": cards})
        return probe
