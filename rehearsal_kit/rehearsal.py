"""The distributed rehearsal buffer: take what was drawn, hand over the offer, one background job per step.

Method: Bouvier et al., "Efficient Distributed Continual Learning for Steering Experiments in Real-Time",
Future Generation Computer Systems 162 (2025) 107438: while step t trains, the background thread stores what
step t-1 offered and draws the representatives of step t+1 from the buffers of all ranks.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rehearsal_kit.buffer import RehearsalBuffer, RowLayout, Samples
from rehearsal_kit.draw import plan_draw
from rehearsal_kit.exchange import Header, exchange_rows, gather_headers
from rehearsal_kit.groups import Groups
from rehearsal_kit.randomness import generator
from rehearsal_kit.settings import Rehearsal


@dataclass(frozen=True)
class Representatives:
    """What one rank drew for one step."""

    samples: dict[str, torch.Tensor]
    """Named tensors (drawn, ...)."""
    owners: NDArray[np.int64]
    """(drawn,): the rank that had stored each."""
    stored: int
    """Samples in the buffers of all ranks when they were drawn."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One background job: what is stored and what is drawn while step `step` trains."""

    step: int
    representatives: int
    """Drawn for the next step, per rank."""
    settings: int
    """Digest of the settings in force."""
    command: int
    """Number of the newest command applied."""
    generation: int = 0
    branch: int = 0


class DistributedBuffer:
    """The union of the buffers of all ranks, as one rank sees it. Used from one training thread.

    Every step calls `advance`, then trains, then calls `offer`. The draw depends on the seed, the step and
    what was offered, never on timing.
    """

    def __init__(self, layout: RowLayout, rehearsal: Rehearsal, *, seed: int, groups: Groups) -> None:
        share, rest = divmod(rehearsal.capacity, groups.ranks)
        self._buffer = RehearsalBuffer(layout, share + (groups.rank < rest))
        self._candidates = rehearsal.candidates
        self._seed = seed
        self._groups = groups
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"rehearsal-r{groups.rank}")
        self._job: Future[Representatives] | None = None
        self._pending: tuple[int, Samples, int] | None = None
        self.waited = 0.0
        """Seconds that `advance` has waited for the background thread, over the whole run."""

    def advance(self, work: Round) -> Representatives | None:
        """Take the representatives of this step, and begin the work for the next one.

        None at the first step, which is not augmented. Fewer than asked for come only while all ranks
        together hold fewer. Raises what the background thread raised.
        """
        began = time.perf_counter()
        drawn = self._job.result() if self._job is not None else None
        self.waited += time.perf_counter() - began
        pending, self._pending = self._pending, None
        self._job = self._thread.submit(self._work, work, pending)
        return drawn

    def offer(self, step: int, samples: Samples, *, group: int) -> None:
        """Hand over the mini-batch that step `step` trained on; copied, so the caller may go on with it."""
        self._pending = (step, {name: tensor.detach().clone() for name, tensor in samples.items()}, group)

    def close(self) -> None:
        """Wait for the job in flight, which every other rank has begun too, and end the thread."""
        try:
            if self._job is not None:
                self._job.result()
        finally:
            self._thread.shutdown()

    def abandon(self) -> None:
        """End the thread without asking what became of its job: for a rank that has failed already."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _work(self, work: Round, pending: tuple[int, Samples, int] | None) -> Representatives:
        if pending is not None:
            self._store(*pending)
        groups = self._groups
        header = Header(
            generation=work.generation,
            branch=work.branch,
            step=work.step,
            settings=work.settings,
            command=work.command,
            stored=len(self._buffer),
        )
        stored = [other.stored for other in gather_headers(header, groups)]
        plan = plan_draw(stored, work.representatives, seed=self._seed, step=work.step)
        outgoing = self._buffer.gather(plan.sent_by(groups.rank)[0])
        incoming = exchange_rows(outgoing, plan, groups)
        return Representatives(self._buffer.layout.unpack(incoming), plan.owners[groups.rank], sum(stored))

    def _store(self, step: int, samples: Samples, group: int) -> None:
        count = len(next(iter(samples.values())))
        random = generator(self._seed, "candidates", self._groups.rank, step)
        if self._buffer.full:
            chosen = np.sort(random.choice(count, size=min(self._candidates, count), replace=False))
            samples = {name: tensor[torch.from_numpy(chosen)] for name, tensor in samples.items()}
            count = len(chosen)
        self._buffer.offer(samples, [group] * count, random)
