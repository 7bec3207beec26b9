"""The workers of a cluster, and which of them is which rank."""

from __future__ import annotations

from typing import Any

from rehearsal_kit.arrivals import natural_key
from rehearsal_kit.cluster import Cluster
from rehearsal_kit.kernel_calls import ANSWER_S


def workers_in_order(cluster: Cluster) -> list[str]:
    """Addresses by (host, name): names survive a restart of a worker, addresses do not."""
    known = known_workers(cluster)
    return sorted(
        known, key=lambda address: (known[address]["host"], natural_key(str(known[address]["name"])))
    )


def known_workers(cluster: Cluster) -> dict[str, Any]:
    """All workers by address. Asked directly: what `scheduler_info` returns is a copy that a timer of the
    client may have replaced, between the question and the answer, by one without the workers.
    """
    client: Any = cluster.client
    identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER_S)
    workers: dict[str, Any] = identity["workers"]
    return workers
