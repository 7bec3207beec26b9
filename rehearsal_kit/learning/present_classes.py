"""Which classes are among the new samples of all ranks: asked for early, waited for where it is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.packed_sum import PackedSum


class PresentClasses:
    """One question to all ranks, which is under way from here on; every rank must ask it.

    It is answered while the network computes, so that no rank waits for it, and nothing of it is read by the
    host. Labels are looked at on the device of the learner: where they lie, each rank may choose for itself,
    and the ranks must ask each other by the same means.

    new: new samples of this rank, (sample, ...). classes: how many there are, by name of the target.
    """

    def __init__(
        self, new: Samples, classes: Mapping[str, int], *, device: str, groups: ProcessGroups
    ) -> None:
        self.waited = 0.0
        """Seconds that this rank had to wait for the answer."""
        self._vector = PackedSum(classes, dtype=torch.int64, device=device)
        own = {
            name: [_found(new[name].to(device, non_blocking=True), count)] for name, count in classes.items()
        }
        self._sum = groups.begin_sum(self._vector.pack(own)) if classes else None
        self._present: Mapping[str, torch.Tensor] = {}

    def known(self) -> Mapping[str, torch.Tensor]:
        """The answer, by name of the target: bool (class,); none where no target is a class."""
        if self._sum is not None:
            began = time.perf_counter()
            total, self._sum = self._sum(), None
            self.waited += time.perf_counter() - began
            self._present = {name: ranks > 0 for name, ranks in self._vector.unpack(total).items()}
        return self._present


def _found(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Whether each of so many classes is among the labels: bool (class,)."""
    # Not by counting them: the length of such a result hangs on the labels, so that the host reads a GPU.
    return (labels.long()[:, None] == torch.arange(count, device=labels.device)).any(dim=0)
