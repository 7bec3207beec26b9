"""Where a run goes on whose job has ended: waiting for the next job's cluster, and going over to it."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from rehearsal_kit.base.errors import ClusterError, ClusterGoneError, said
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import ask_scheduler
from rehearsal_kit.cluster.scheduler_calls import ask_lease, look_for
from rehearsal_kit.record.run_folder import RunFolder

LOOK_S = 0.5
ASK_S = 15.0
"""Seconds between two questions to the batch system."""
BEGINS_S = 600.0
"""What a run may take to be under way on a cluster that is up: its shards may be large."""
ANSWER_S = 60.0


def next_cluster(
    cluster: Cluster, run: RunFolder, *, leads: bool, closing: threading.Event
) -> tuple[str, str, bool] | None:
    """Connect `cluster` to the job that follows, once this run is under way there.

    As long as that job waits in its queue, which may be for days. leads: whether this kernel steered before,
    and so is to go on with that. closing: ends the waiting.

    Returns the topic of the run there, the name of this kernel by its new connection, and whether it steers;
    None where the waiting has ended.
    ClusterError, with the reason and what to do, where that cluster or that run does not come up.
    """
    cluster.disconnect()  # else Dask looks for the scheduler that has ended, and logs that it is not there
    try:
        asked = time.monotonic()
        while not cluster.has_moved():
            if closing.wait(LOOK_S):
                return None
            if time.monotonic() - asked > ASK_S:
                asked = time.monotonic()
                if words := cluster.files.ended():
                    raise ClusterError(f"{words}.")
        cluster.reconnect()
        found = _begun(cluster, run, closing)
        if found is None:
            return None
        topic, holder = str(found["topic"]), f"{cluster.client.id}/{secrets.token_hex(4)}"
        steers = ask_scheduler(cluster.client, ask_lease, topic, holder, take=leads, timeout_s=ANSWER_S)
        return topic, holder, steers
    except (ClusterError, OSError) as error:
        raise ClusterError(
            f"{said(error)} rk.resume({str(run.path)!r}, {cluster.files.another}) goes on with the run."
        ) from error


def _begun(cluster: Cluster, run: RunFolder, closing: threading.Event) -> Mapping[str, Any] | None:
    deadline = time.monotonic() + BEGINS_S
    while not closing.wait(LOOK_S):
        with contextlib.suppress(ClusterGoneError):  # it begins
            found: Mapping[str, Any] | None = ask_scheduler(
                cluster.client, look_for, str(run.path), timeout_s=ANSWER_S
            )
            if found is not None:
                return found
        if cluster.files.failure.exists():
            raise ClusterError(cluster.files.failure.read_text().strip())
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the next job is there, but {run.path} is not under way on it after {BEGINS_S:g} s; why not "
                f"stands in {cluster.files.log}."
            )
    return None
