"""Asking rank 0 for a preview."""

from __future__ import annotations

import contextlib

from distributed import Client

from rehearsal_kit.base.errors import ClusterGoneError
from rehearsal_kit.cluster.cluster_calls import ask_workers
from rehearsal_kit.cluster.rank_host import get_preview
from rehearsal_kit.record.preview_files import Preview, Wanted

PREVIEW_TIMEOUT_S = 5.0


def ask_preview(client: Client, worker: str, *, topic: str, wanted: Wanted) -> Preview | None:
    """What the rank on this worker has of it; None where it has nothing, or does not answer."""
    # Its worker may be gone by now, or frozen.
    with contextlib.suppress(OSError, ValueError, KeyError, ClusterGoneError):
        answers = ask_workers(
            client, get_preview, topic, wanted, workers=[worker], timeout_s=PREVIEW_TIMEOUT_S
        )
        preview: Preview | None = answers[worker]
        return preview
    return None
