"""The least work that a rehearsal buffer can do: what all others are divided by."""

from __future__ import annotations

import torch

from rehearsal_kit.bench.store.workload import Contestant, TaskStream, Workload, both, some_of


class Floor:
    """The plainest vectorised reservoir: one preallocated tensor per field, no checks, no bookkeeping.

    The sample at position s of the stream goes to row floor(rand x s) if there is such a row (Vitter,
    "Random sampling with a reservoir", ACM TOMS 1985); a draw may give the same row twice.

    seen: position of the stream to which `reset` goes back. everything: offer whole mini-batches.
    """

    def __init__(self, workload: Workload, *, seen: int, everything: bool) -> None:
        self._workload = workload
        self._start = self._seen = seen
        self._everything = everything
        self._stream = TaskStream(workload)
        self._stores = workload.samples(workload.capacity)

    def reset(self) -> None:
        """Back to the position it began at; the rows stay as they are."""
        self._seen = self._start

    def update(self) -> None:
        """Offer one mini-batch, or the candidates picked from it."""
        samples = self._stream.next()
        offered = self._workload.batch
        if not self._everything:
            offered = self._workload.candidates
            samples = some_of(samples, offered)
        slots = (torch.rand(offered) * (self._seen + torch.arange(1, offered + 1))).long()
        kept = slots < self._workload.capacity
        slots = slots[kept]
        for name, store in self._stores.items():
            store.index_copy_(0, slots, samples[name][kept])
        self._seen += offered

    def draw(self) -> dict[str, torch.Tensor]:
        """Named tensors (drawn, ...)."""
        rows = torch.randint(self._workload.capacity, (self._workload.representatives,))
        return {name: store.index_select(0, rows) for name, store in self._stores.items()}

    def contestant(self, *, resets: bool = True) -> Contestant:
        """The floor as one of those that are measured."""
        phases = both(self.update, self.draw)
        return Contestant(phases, reset=self.reset) if resets else Contestant(phases)
