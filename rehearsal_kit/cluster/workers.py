"""The workers of a cluster, and which of them is which rank."""

from __future__ import annotations

import time
from typing import Any

from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import ask_identity
from rehearsal_kit.cluster.protocol import rank_key

LOOK_S = 0.1

RETURN_S = 30.0
"""What a worker has to be there again whose process has ended."""


def ranks_of(cluster: Cluster) -> int:
    """How many ranks a run has on this cluster: one for each worker.

    On a cluster of ours one whose process has ended, as on a GPU after an error, is soon there again, and
    waited for: else a run would go on on fewer ranks, and never be what it would have been.
    """
    deadline = time.monotonic() + RETURN_S
    while (count := len(known_workers(cluster))) < cluster.promised and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return count


def workers_in_order(cluster: Cluster) -> list[str]:
    """Addresses in order of rank."""
    known = known_workers(cluster)
    return sorted(known, key=lambda address: rank_key(known[address]["host"], known[address]["name"]))


def known_workers(cluster: Cluster) -> dict[str, Any]:
    """All workers by address. Asked directly: what `scheduler_info` returns is a copy that a timer of the
    client may have replaced, between the question and the answer, by one without the workers.
    """
    workers: dict[str, Any] = ask_identity(cluster.client, gone=lambda: cluster.has_ended)["workers"]
    return workers
