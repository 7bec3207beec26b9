"""The device of one rank, as its torch sees it: the one that it was told to use, or why it cannot."""

from __future__ import annotations

import os
import socket

import torch

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cluster.gpus import why_hidden

LOCAL = "cuda:0"
"""The GPU of a worker, as torch calls it: whatever others there are come after it, or are not seen."""


def device_of(kind: str) -> str:
    """The device of a rank that was told to train on "cpu" or "cuda", as torch calls it.

    A rank obeys, whatever GPUs it may see. ClusterError, with the reason, where it was told to use one and
    cannot: it would train on the CPU, and nobody would know.
    """
    if kind == "cpu":
        return "cpu"
    if reason := why_no_gpu():
        raise ClusterError(
            f"this run trains on GPUs, but a worker on {socket.gethostname()} has none: {reason}."
        )
    return LOCAL


def why_no_gpu() -> str:
    """Why torch uses no GPU in this process; empty if it does."""
    if torch.cuda.is_available():
        return ""
    if not torch.version.cuda:
        return f"its torch ({torch.__version__}) is not built for CUDA"
    if hidden := why_hidden(os.environ.get("CUDA_VISIBLE_DEVICES")):
        return hidden
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0]
    return "torch sees no device"


def identity_of(device: str) -> str:
    """UUID of a GPU, with "MIG-" before that of a slice of one; empty for the CPU."""
    if device == "cpu":
        return ""
    properties = torch.cuda.get_device_properties(device)
    return f"{'MIG' if ' MIG ' in properties.name else 'GPU'}-{properties.uuid}"
