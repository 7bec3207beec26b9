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

from rehearsal_kit.base.errors import ClusterError, said
from rehearsal_kit.cluster.hosted_device import empty_device, end_process
from rehearsal_kit.cluster.rank_device import LOCAL, device_of
from rehearsal_kit.cluster.rank_host import PLUGIN, RankHost
from rehearsal_kit.cluster.worker_variables import require_variables
from rehearsal_kit.learning.gpu_arithmetic import device_versions, gpu_arithmetic
from rehearsal_kit.rank.run_check import Tried, dry_steps
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.record.commands import Arrived

ANSWERED_S = 0.2
"""What an answer has to leave this process before it ends."""


async def check_on_worker(spec: bytes, tasks: Sequence[Arrived], *, device: str, dask_worker: Worker) -> str:
    """Why the ranks could not run this job; empty if they could, or where this worker trains already.

    spec: as it would be sent to the ranks. device: cpu or cuda, as it would be ordered. A worker that trains
    is not asked: the dry step would take its time, and the random numbers of a training process are its own.
    """
    host = dask_worker.plugins.get(PLUGIN)
    if isinstance(host, RankHost) and (await host.status(""))["alive"]:
        return ""
    on_gpu = (host if isinstance(host, RankHost) else RankHost()).device(device).crash_only
    tried = await asyncio.to_thread(_checked, spec, tasks, device)
    if tried.sticky and on_gpu:  # the next job, which may be well, would fail here at once
        asyncio.get_running_loop().call_later(ANSWERED_S, end_process, "its device failed in a dry step.")
    return tried.reason


def _checked(packed: bytes, tasks: Sequence[Arrived], kind: str) -> Tried:
    try:
        require_variables()
        device = device_of(kind)
    except ClusterError as error:
        return Tried(str(error))
    try:
        spec: RunSpec = pickle.loads(packed)  # noqa: S301 - from the kernel that runs this cluster
    except ModuleNotFoundError as error:
        module = error.name or str(error)
        return Tried(
            f"the workers cannot import the module {module}, which the network or the strategy needs. "
            "Install it where the workers run, or send it along before Session(...): "
            f"import cloudpickle, {module}; cloudpickle.register_pickle_by_value({module})"
        )
    except Exception as error:  # whatever its own code raises when it is read
        return Tried(f"the workers cannot read the network or the strategy: {said(error)}")
    if not Path(spec.run.path).is_dir():
        return Tried(
            f"the workers do not see the run folder {spec.run.path}; choose one on a file system that kernel "
            "and workers share."
        )
    with gpu_arithmetic(device, deterministic=spec.training.deterministic):
        tried = dry_steps(replace(spec, device=device), tasks)
    empty_device()
    return tried


def tell_device_versions(kind: str, deterministic: bool) -> dict[str, str]:
    """What decides about the bits of a rank on this worker, which is of a cluster of this kind."""
    device = "cpu" if kind == "cpu" else LOCAL
    with gpu_arithmetic(device, deterministic=deterministic):
        return device_versions(device)
