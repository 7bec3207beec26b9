"""The background work of one step, taken apart and as a whole, on real ranks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.randomness import Rekeyed
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.bench.store.workload import portions
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.draw_plan import plan_draw
from rehearsal_kit.buffer.exchange import GroupExchange, Header, gather_headers
from rehearsal_kit.buffer.policies import Quotas
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.staging import Staging
from rehearsal_kit.buffer.store import LocalStore

SEED = 0
WARM_UP = 3
"""Steps before the first that counts."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What is exchanged."""

    name: str
    image: tuple[int, ...]
    """Shape of the float32 field; beside it there is a label of 8 bytes."""
    batch: int
    candidates: int
    representatives: int
    capacity: int = 200
    """Samples per rank."""

    def samples(self, count: int) -> dict[str, torch.Tensor]:
        """Random samples: named tensors (sample, ...)."""
        return {"image": torch.rand(count, *self.image), "label": torch.zeros(count, dtype=torch.int64)}

    @property
    def row_bytes(self) -> int:
        """Bytes per sample as stored."""
        return RowLayout.of(self.samples(0)).row_bytes


PUBLISHED = (
    Rows(name="7 of 3x224x224", image=(3, 224, 224), batch=56, candidates=14, representatives=7),
    Rows(name="24 of 3x256x256", image=(3, 256, 256), batch=16, candidates=8, representatives=24),
)


@dataclass(frozen=True)
class RankTimes:
    """Seconds and bytes of the background work of one rank, step by step."""

    header_s: list[float]
    """All-gather of the headers."""
    gather_s: list[float]
    """Copying the rows to be sent together."""
    all_to_all_s: list[float]
    job_s: list[float]
    """Whole background jobs of a `DistributedBuffer`: these three, the plan, and storing candidates."""
    from_others: list[int]
    """Bytes received from other ranks."""


def measure_exchange(groups: ProcessGroups, rows: Rows, steps: int) -> RankTimes:
    """Measure the background work on one rank; all ranks call it together."""
    parts = _parts(groups, rows, steps)[WARM_UP:]
    return RankTimes(
        header_s=[part.header_s for part in parts],
        gather_s=[part.gather_s for part in parts],
        all_to_all_s=[part.all_to_all_s for part in parts],
        job_s=_jobs(groups, rows, steps)[WARM_UP:],
        from_others=[part.from_others for part in parts],
    )


@dataclass(frozen=True)
class _Part:
    """One step of the job taken apart: see RankTimes."""

    header_s: float
    gather_s: float
    all_to_all_s: float
    from_others: int


def _parts(groups: ProcessGroups, rows: Rows, steps: int) -> list[_Part]:
    """Steps of the background job taken apart: the same calls in the same order, but in this thread."""
    layout = RowLayout.of(rows.samples(0))
    store = LocalStore(layout, rows.capacity, policy=Quotas())
    filler = Rekeyed(SEED, "store")
    for begin, count in enumerate(portions(rows.capacity, rows.batch)):
        store.offer(rows.samples(count), [0] * count, random=filler.at(groups.rank, begin))
    exchange, staging, drawing = GroupExchange(groups), Staging(layout, "cpu"), Rekeyed(SEED, "draw")
    return [
        _part(store, exchange, staging=staging, drawing=drawing, header=_header(rows, step))
        for step in range(steps + WARM_UP)
    ]


def _part(
    store: LocalStore, exchange: GroupExchange, *, staging: Staging, drawing: Rekeyed, header: Header
) -> _Part:
    exchange.gather([0])  # so that all ranks begin at nearly the same time, here and below
    began = time.perf_counter()
    headers = gather_headers(header, exchange)
    header_s = time.perf_counter() - began
    plan = plan_draw([h.stored for h in headers], [header.representatives], drawing.at(0, header.step))
    places = plan.sent_by(exchange.rank)[0]
    began = time.perf_counter()
    outgoing = torch.from_numpy(store.gather(places, out=staging.pinned(len(places))))
    gather_s = time.perf_counter() - began
    exchange.gather([0])
    began = time.perf_counter()
    exchange.rows(outgoing, plan, staging.empty)
    all_to_all_s = time.perf_counter() - began
    from_others = int((plan.owners(exchange.rank) != exchange.rank).sum()) * store.layout.row_bytes
    return _Part(header_s, gather_s, all_to_all_s, from_others)


def _header(rows: Rows, step: int) -> Header:
    return Header(
        generation=0,
        branch=0,
        step=step,
        settings=0,
        command=0,
        capacity=rows.capacity,
        representatives=rows.representatives,
        distillation=0,
        stored=rows.capacity,
        groups=1,
        threshold=0,
    )


def _jobs(groups: ProcessGroups, rows: Rows, steps: int) -> list[float]:
    """Seconds of each background job, which runs while nothing else does on this rank."""
    rehearsal = Rehearsal(
        representatives=rows.representatives,
        candidates=rows.candidates,
        capacity=rows.capacity * groups.ranks,
    )
    layout, samples = RowLayout.of(rows.samples(0)), rows.samples(rows.batch)
    worked = []
    with DistributedBuffer(layout, rehearsal, seed=SEED, exchange=GroupExchange(groups)) as buffer:
        # One more to fill than the batches it takes, because an offer is stored a step later.
        filling = -(-rows.capacity // rows.batch) + 1
        for step in range(filling + WARM_UP + steps + 1):
            before = buffer.worked
            buffer.advance()
            if step > filling:
                worked.append(buffer.worked - before)
            buffer.offer(samples, group=0)
            buffer.state()  # waits for the job
    return worked
