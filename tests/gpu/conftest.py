"""Tests that need a GPU skip where there is none, before anything is started."""

from __future__ import annotations

import pytest
from devicekit import KIND

from rehearsal_kit.cluster.rank_device import why_no_gpu


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """Skip with the reason; on CPUs, where that was asked for, only what CUDA alone can execute skips."""
    if KIND == "cuda" and (reason := why_no_gpu()):
        pytest.skip(f"needs an NVIDIA GPU: {reason}")


@pytest.fixture
def only_cuda():
    """For tests of what nothing but CUDA can execute."""
    if KIND != "cuda":
        pytest.skip("only CUDA can execute it")
