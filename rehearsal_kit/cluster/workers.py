"""The workers of a cluster, and which of them is which rank."""

from __future__ import annotations

from typing import Any

from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import ask_identity
from rehearsal_kit.cluster.protocol import rank_key


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
