"""Samples whose every number tells which sample it belongs to, so that any mix-up shows."""

from __future__ import annotations

import time

import numpy as np
import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.distributed_buffer import BufferDevice, DistributedBuffer
from rehearsal_kit.buffer.draw_plan import DrawPlan
from rehearsal_kit.buffer.exchange import Empty, GroupExchange
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.data.shard_room import ShardRoom

SENTINEL = -(2**40) - 7


def samples(identities, *, outputs=torch.float32):
    """Fields of every width, outputs in a dtype of choice; numbers up to 2^19 stay exact."""
    identity = torch.as_tensor(list(identities), dtype=torch.int64)
    image = identity.float()[:, None, None] + torch.tensor([[0.0, 0.25], [0.5, 0.75]])
    return {
        "image": image,
        "flag": identity % 2 == 1,
        "target": -identity.double()[:, None] - 0.5,
        "outputs": (identity[:, None] % 1000 + torch.arange(3)).to(outputs),
        "label": (identity % 251).to(torch.uint8),
        "sample_id": identity,
    }


def assert_whole(got, *, outputs=torch.float32):
    """Every field of every row belongs to the same sample (small whole numbers are exact in float16, too)."""
    expected = samples(got["sample_id"].tolist(), outputs=outputs)
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(got[name].cpu(), tensor), name
        assert got[name].dtype == tensor.dtype


def identity_of(rank, step, place):
    return rank * 2**17 + step * 2**8 + place


def rank_of(identity):
    return identity // 2**17


def step_of(identity):
    return identity % 2**17 // 2**8


def batch_of(rank, step, size):
    return samples(identity_of(rank, step, place) for place in range(size))


class WatchedRun:
    """An exchange that counts, fills what is to be received with a sentinel, and may be slow."""

    def __init__(self, groups: ProcessGroups, *, delay_s: float = 0.0) -> None:
        self._real = GroupExchange(groups)
        self._random = np.random.default_rng(groups.rank)
        self._delay_s = delay_s
        self.rank, self.ranks = groups.rank, groups.ranks
        self.gathers = self.exchanges = self.begun = 0

    def gather(self, numbers):
        self.gathers += 1
        time.sleep(self._random.uniform(0, self._delay_s))
        return self._real.gather(numbers)

    def rows(self, outgoing: torch.Tensor, plan: DrawPlan, empty: Empty) -> torch.Tensor:
        self.exchanges += 1
        time.sleep(self._random.uniform(0, self._delay_s))
        return self._real.rows(outgoing, plan, lambda count: empty(count).fill_(SENTINEL))

    def carries(self, device: torch.device) -> bool:
        return self._real.carries(device)

    def begin_rows(self, outgoing: torch.Tensor, incoming: torch.Tensor, **counts):
        self.begun += 1
        return self._real.begin_rows(outgoing, incoming.fill_(SENTINEL), **counts)


def alone_in_its_store(groups: ProcessGroups) -> GroupExchange:
    """What a local draw is: a rank that knows of no other."""
    return GroupExchange(ProcessGroups(rank=0, ranks=1))


def placed(rank, place, *, name="cpu", **room):
    """Where the rows of a rank lie: in "host" memory, on the "device", or on "either", by turns of ranks."""
    if place == "host":
        return BufferDevice(name)
    free = 10**12 if place == "device" or rank % 2 else 0
    # A block of one row at a time, so that rows change while they are on their way.
    values = {"known_after": 3, "block_bytes": 1, **room}
    return BufferDevice(name, ShardRoom(lambda: free, lambda: 0, **values))


def new_buffer(groups, *, exchange=None, seed=9, outputs=torch.float32, device="cpu", **settings):
    layout = RowLayout.of(samples([], outputs=outputs), half=settings.get("half", ()))
    values = {"representatives": 6, "candidates": 3, "capacity": 40, **settings}
    return DistributedBuffer(
        layout,
        Rehearsal(**values),
        seed=seed,
        exchange=exchange or GroupExchange(groups),
        device=device,
    )


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on a GPU, and can be copied from there."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="cuda")

    def __init__(self, held):
        self.held = held

    def __deepcopy__(self, memo):
        return Elsewhere(self.held.clone())

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        assert (func, kwargs["device"]) == (torch.ops.aten._to_copy.default, torch.device("cpu"))
        return args[0].held
