"""Whether a run can be trained, tried out before it begins: in this kernel and on one worker."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from rehearsal_kit.base.errors import SessionError, SettingsError
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import within
from rehearsal_kit.cluster.worker_check import check_on_worker
from rehearsal_kit.cluster.workers import workers_in_order
from rehearsal_kit.rank.run_check import dry_run
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec, packed_spec
from rehearsal_kit.record.commands import Arrived

CHECK_S = 60.0
"""What a worker has to import what it is sent, and to take two steps on a few samples."""


def check_run(cluster: Cluster, settings: RunSettings, tasks: Sequence[Arrived]) -> None:
    """SettingsError, in words, for a run that could train none of these tasks; changes nothing.

    Where the workers have GPUs only one of them is asked: a network may need what this kernel has not.
    SessionError if no worker answers in time, or the cluster is gone.
    """
    packed = packed_spec(settings)
    spec = pickle.loads(packed)  # noqa: S301 - made in the line above
    # The worker takes the steps as well: a kernel that takes none has not to import what that takes.
    here = isinstance(spec, RunSpec) and cluster.address.kind == "cpu"
    if here and (reason := dry_run(spec, tasks, optimizer=False)):
        raise SettingsError(f"this run cannot be trained: {reason}")
    if reason := _asked(cluster, packed, tasks):
        raise SettingsError(f"this run cannot be trained on the workers: {reason}")


def _asked(cluster: Cluster, packed: bytes, tasks: Sequence[Arrived]) -> str:
    client: Any = cluster.client
    try:
        workers = workers_in_order(cluster)[:1]
        if not workers:  # they may come later
            return ""
        answers: dict[str, str] = within(
            client,
            CHECK_S,
            client._run,
            check_on_worker,
            packed,
            tasks,
            device=cluster.address.kind,
            workers=workers,
            gone=lambda: cluster.has_ended,
        )
    except TimeoutError as error:
        if cluster.has_ended:
            raise SessionError("the cluster has ended; start another one, and then this run.") from error
        raise SessionError(
            f"no worker has answered the check of this run for {CHECK_S:.0f} s; are they frozen? Look at "
            "them, or start another cluster, and then this run."
        ) from error
    except OSError as error:
        raise SessionError(f"the cluster cannot be reached; was it stopped? {error}") from error
    return answers[workers[0]]
