"""What one worker finds before a run begins: whether it can import, see and compute what ranks need, and how.

Called through `client.run`, which passes the worker as `dask_worker`.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed import Worker

from rehearsal_kit.base.errors import said
from rehearsal_kit.cluster.devices import rank_device
from rehearsal_kit.cluster.rank_host import PLUGIN, RankHost
from rehearsal_kit.learning.gpu_arithmetic import device_versions, gpu_arithmetic
from rehearsal_kit.rank.run_check import dry_run
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.record.commands import Arrived


async def check_on_worker(spec: bytes, tasks: Sequence[Arrived], dask_worker: Worker) -> str:
    """Why the ranks could not run this job; empty if they could, or where this worker trains already.

    job: as it would be sent to the ranks. A worker that trains is not asked: the dry step would take its
    time, and the random numbers of a training process are its own.
    """
    host = dask_worker.plugins.get(PLUGIN)
    if isinstance(host, RankHost) and (await host.status(""))["alive"]:
        return ""
    return await asyncio.to_thread(_checked, spec, tasks)


def _checked(packed: bytes, tasks: Sequence[Arrived]) -> str:
    try:
        spec: RunSpec = pickle.loads(packed)  # noqa: S301 - from the kernel that runs this cluster
    except ModuleNotFoundError as error:
        module = error.name or str(error)
        return (
            f"the workers cannot import the module {module}, which the network or the strategy needs. "
            "Install it where the workers run, or send it along before Session(...): "
            f"import cloudpickle, {module}; cloudpickle.register_pickle_by_value({module})"
        )
    except Exception as error:  # whatever its own code raises when it is read
        return f"the workers cannot read the network or the strategy: {said(error)}"
    if not Path(spec.run.path).is_dir():
        return (
            f"the workers do not see the run folder {spec.run.path}; choose one on a file system that kernel "
            "and workers share."
        )
    device = rank_device()
    with gpu_arithmetic(device, deterministic=spec.training.deterministic):
        return dry_run(replace(spec, device=device), tasks)


def tell_device_versions(kind: str, deterministic: bool) -> dict[str, str]:
    """What decides about the bits of a rank on this worker, which is of a cluster of this kind."""
    device = "cpu" if kind == "cpu" else f"{kind}:0"
    with gpu_arithmetic(device, deterministic=deterministic):
        return device_versions(device)
