"""Workers that are bound to GPUs: by dask-cuda, or by us where it is missing or would refuse to share."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from distributed import LocalCluster


class PlainGpuCluster(LocalCluster):
    """A LocalCluster each of whose workers sees its own GPU first, as dask-cuda has it.

    gpus: as CUDA_VISIBLE_DEVICES names them. More workers than that share them in turn.
    alone: whether a worker sees no other GPU, as MIG slices need it.
    """

    def __init__(self, gpus: Sequence[str], *, n_workers: int, alone: bool, **options: Any) -> None:
        self._gpus, self._alone = tuple(gpus), alone
        local: Any = super()
        local.__init__(n_workers=0, processes=True, **options)
        local.scale(n_workers)
        local.sync(self._correct_state)

    def new_worker_spec(self) -> dict[int, dict[str, Any]]:
        """Called by Dask for each worker; its name is its number, which a restarted one keeps."""
        local: Any = super()
        ((name, shared),) = local.new_worker_spec().items()
        spec = copy.copy(shared)
        visible = visible_devices(self._gpus, name, alone=self._alone)
        spec["options"] = {**shared["options"], "env": {"CUDA_VISIBLE_DEVICES": visible}}
        return {name: spec}


def gpu_cluster(gpus: Sequence[str], common: Mapping[str, Any], *, plain: bool, shared: bool) -> LocalCluster:
    """A cluster of one worker per GPU, or of several on each. common: options of every LocalCluster."""
    if plain:
        alone = shared or any(gpu.startswith("MIG-") for gpu in gpus)
        return PlainGpuCluster(gpus, alone=alone, **common)
    # Importable only where the extra for its CUDA version is installed.
    from dask_cuda import LocalCUDACluster  # noqa: PLC0415

    cluster: LocalCluster = LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=list(gpus), **common, rmm_pool_size=None, device_memory_limit=0
    )
    return cluster


def visible_devices(gpus: Sequence[str], number: int, *, alone: bool) -> str:
    """CUDA_VISIBLE_DEVICES of the worker of this number: its own GPU, and unless it is alone the others."""
    first = number % len(gpus)
    return ",".join([*gpus[first:], *gpus[:first]][: 1 if alone else None])
