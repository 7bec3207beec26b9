"""Which library sums gradients of ranks on GPUs: NCCL, which wants a whole GPU for each, or gloo."""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Sequence

from torch.distributed import PrefixStore  # type: ignore[attr-defined] # public, not in __all__

from rehearsal_kit.base.errors import ClusterError

LOG = logging.getLogger(__name__)
SLICE = "MIG-"
"""Beginning of the UUID of a slice of a GPU."""


def meet_gpus(store: PrefixStore, gpu: str, *, rank: int, ranks: int, timeout_s: float) -> list[str]:
    """The UUIDs of the GPUs of all ranks, in order of rank, before any group is made.

    store: where the ranks meet. NCCL would find out by itself, and end with an error that names neither.
    """
    store.set_timeout(datetime.timedelta(seconds=timeout_s))
    store.set(f"gpu-{rank}", gpu)
    return [store.get(f"gpu-{each}").decode() for each in range(ranks)]


def gradient_backend(gpus: Sequence[str], *, share: bool) -> str:
    """The backend of the process group of these ranks: "cpu:gloo,cuda:nccl", or "gloo" on shared GPUs.

    gpus: UUIDs in order of rank. share: whether it was asked for that ranks share a GPU. ClusterError, with
    the ranks, where they do and it was not.
    """
    if not (reason := _no_nccl(gpus)):
        return "cpu:gloo,cuda:nccl"
    if not share:
        raise ClusterError(
            f"{reason}, and NCCL connects only ranks that have a whole GPU each. Start one worker per GPU, "
            "or ask for it: rk.start_cluster(share_gpus=True) or rk.connect(..., share_gpus=True) sum "
            "gradients over gloo, which is slower."
        )
    LOG.warning("%s: gradients go over gloo, not NCCL", reason)
    return "gloo"


def _no_nccl(gpus: Sequence[str]) -> str:
    """Why NCCL cannot connect ranks on these GPUs; empty if it can."""
    if slices := [str(rank) for rank, gpu in enumerate(gpus) if gpu.startswith(SLICE)]:
        return f"ranks {', '.join(slices)} are on MIG slices"
    gpu, count = Counter(gpus).most_common(1)[0]
    if count == 1:
        return ""
    both = ", ".join(str(rank) for rank, each in enumerate(gpus) if each == gpu)
    return f"ranks {both} are on the same GPU ({gpu})"
