"""What the workers of a cluster that somebody else started can train on, asked before a run begins there."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from distributed import Worker

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cluster.rank_device import why_no_gpu

DASK_CUDA = "dask_cuda"
"""A module that a worker has only where `dask cuda worker` has started it."""


def tell_device(dask_worker: Worker) -> tuple[str, bool, str]:
    """Name and host of this worker; whether it was started for a GPU; and why it has none, if it has none.

    For client.run, which passes the worker.
    """
    reason = why_no_gpu()
    return f"{dask_worker.name} on {socket.gethostname()}", not reason or DASK_CUDA in sys.modules, reason


def common_kind(told: Iterable[tuple[str, bool, str]]) -> str:
    """ "cuda" or "cpu", for workers that told this; ClusterError, with their names, if they differ.

    Ranks of a mixed cluster would wait for each other in process groups of different kinds, until a timeout.
    """
    answers = sorted(told)
    for name, for_gpu, reason in answers:
        if for_gpu and reason:
            raise ClusterError(
                f"worker {name} was started by `dask cuda worker`, but has no GPU: {reason}. Mend that, or "
                "start `dask worker` in its place."
            )
    with_gpu = [name for name, _, reason in answers if not reason]
    without = [(name, reason) for name, _, reason in answers if reason]
    if with_gpu and without:
        raise ClusterError(
            f"workers {', '.join(with_gpu)} have a GPU, but {', '.join(name for name, _ in without)} "
            f"{'have' if len(without) > 1 else 'has'} none ({without[0][1]}); a run needs the same on all. "
            "End some of them, or start all with CUDA_VISIBLE_DEVICES= for a run on CPUs."
        )
    return "cuda" if with_gpu else "cpu"
