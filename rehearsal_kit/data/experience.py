"""What a task brings to the stream: an experience, whatever it was made of, and its shards."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.base.randomness import generator
from rehearsal_kit.data.preparation import Preparation

Indices = NDArray[np.int64]

HELD_OUT = ("watched", "test")
SPLITS = ("training", *HELD_OUT)
NUMBER = "number"
"""The field that says which sample of its task a sample is."""


class Experience(Protocol):
    """The data that one task brings: training, watched (plotted) and test samples (final tables only)."""

    @property
    def name(self) -> str:
        """Name of the experience, as people read it."""

    @property
    def path(self) -> Path:
        """The file it comes from."""

    @property
    def inputs(self) -> str:
        """The field that goes into the network."""

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is measured, before any preparation."""

    @property
    def preparation(self) -> Preparation | None:
        """How samples are prepared from what is measured, scale included; None where they come prepared."""

    @property
    def group(self) -> str | None:
        """The field by which the buffer keeps quotas, such as the class; None: the task."""

    @property
    def simulated(self) -> bool:
        """Whether its measurements were computed rather than measured."""

    @property
    def skipped(self) -> int:
        """Samples of the file that are in none of the splits."""

    def count(self, split: str) -> int:
        """Samples of a split: "training", "watched" or "test"."""

    def load(self, split: str, places: Indices) -> dict[str, torch.Tensor]:
        """Samples of a split by their places in it, (sample, ...), with `number`, int64 (sample,).

        There may be fewer than places: a scan leaves out frames without beam.
        """


def shard(experience: Experience, *, seed: int, task: int, rank: int, ranks: int) -> Indices:
    """Places of the training samples that one rank trains on; all ranks' shards are disjoint and cover all.

    A permutation keyed by (seed, task) deals them out, so sizes differ by at most one.
    """
    dealt: Indices = generator(seed, "shard", task).permutation(experience.count("training"))
    return dealt[rank::ranks].astype(np.int64)
