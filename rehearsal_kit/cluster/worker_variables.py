"""The variables by which workers are bound to their devices and interface, and the check that they hold.

A variable that a site sets would win over what Dask is told to give its workers: so they are set in the
server, before Dask begins, and every rank compares.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import dask

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.nccl_variables import NCCL_VARIABLES, flight_records
from rehearsal_kit.base.network_interfaces import Interface, socket_variables

SETTING = "rehearsal-kit.variables"
"""Name in Dask's configuration, which a nanny passes on, of what a worker must have."""
# Dask has workers give freed memory back at once; a training step would fetch it again every time.
THREADS_AND_MEMORY = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**28),
}


def worker_variables(kind: str, interface: Interface, *, scratch: str) -> dict[str, str]:
    """What all workers of a cluster have: ranks meet where Dask is bound to; those on CPUs see no GPU.

    scratch: a folder for temporary files.
    """
    if kind == "cpu":
        # Empty, not -1: with that, and NVML on the machine, Dask itself does not start.
        devices = {"CUDA_VISIBLE_DEVICES": ""}
    else:
        devices = {"CUDA_DEVICE_ORDER": in_bus_order(os.environ)["CUDA_DEVICE_ORDER"]}
    collectives = {**NCCL_VARIABLES, **flight_records(scratch), **socket_variables(interface)}
    return {**THREADS_AND_MEMORY, **collectives, **devices}


def in_bus_order(environ: Mapping[str, str]) -> dict[str, str]:
    """These variables; where the site does not say how CUDA numbers GPUs, it is as NVML and nvidia-smi do."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **environ}


def bind(variables: Mapping[str, str]) -> None:
    """Have the workers that this process will start get these variables, and check them."""
    os.environ.update(variables)
    dask.config.set({"distributed.nanny.pre-spawn-environ": dict(variables), SETTING: dict(variables)})


def require_variables() -> None:
    """ClusterError where this worker has other variables than it was to have; elsewhere nothing is known."""
    wanted: Mapping[str, str] = dask.config.get(SETTING, {})
    wrong = [
        f"{name}={os.environ.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if os.environ.get(name) != value
    ]
    if wrong:
        raise ClusterError(
            f"this worker has {', '.join(wrong)}; something on this machine (a preload, a module of the "
            "site) sets it, and ranks could listen elsewhere or take another device. Start without that."
        )
