"""A shard as it lies ready for training: the same mini-batches wherever it lies, and who reads what."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from waiting import NoWaiting

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.data.shard_room import DEVICE_SHARE, HOST_SHARE, KNOWN_AFTER, ShardRoom
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.data.training_shard import AS_READ, ON_DEVICE, PINNED, TrainingShard

MUCH = 10**12
ROOMS = {
    ON_DEVICE: ShardRoom(lambda: MUCH, lambda: 0, known_after=2, block_bytes=2000),
    PINNED: ShardRoom(lambda: 0, lambda: MUCH, known_after=2, block_bytes=1000, pinned_row_bytes=0),
    AS_READ: ShardRoom(lambda: 0, lambda: 0, known_after=2),
}
"""With which a shard comes to lie there after two mini-batches, ten or five samples with each."""
EPOCHS = 3
everywhere = pytest.mark.parametrize("where", ROOMS)


def samples(count, begin=0):
    """All kinds of fields, with values that are not finite."""
    numbers = torch.arange(begin, begin + count)
    image = torch.rand(count, 2, 3, 5)
    image[::3, 0, 0, :2] = torch.tensor([torch.nan, torch.inf])
    return {
        "image": image,
        "label": numbers % 4,
        "mask": torch.rand(count, 7) > 0.5,
        "counts": numbers.to(torch.uint8)[:, None].expand(count, 3).contiguous(),
        "field": torch.randn(count, 3, dtype=torch.complex64),
        "half": torch.randn(count, 5).half(),
        "double": torch.randn(count, dtype=torch.float64),
        "sample_id": 1000 + numbers,
    }


def loader_of(fields, room=None, *, device="cpu", batch=4, group="label"):
    shard = TrainingShard(fields, device=device, group=group, room=room)
    count = len(shard)
    return TaskLoader(2, [2], shard, largest=count, epochs=EPOCHS, batch=batch, key=(3, 0), group=group)


def equal(first, second):
    """Whether fields have the same bits, NaN among them."""
    return first.keys() == second.keys() and all(map(torch.equal, bits(first), bits(second)))


def bits(fields):
    return [tensor.contiguous().view(torch.uint8) for tensor in fields.values()]


@everywhere
def test_mini_batches_are_the_same_bit_for_bit_wherever_a_shard_lies(where):
    fields = samples(23)
    as_read, loader = loader_of(fields), loader_of(fields, ROOMS[where])
    while not as_read.done:
        if as_read.taken == 9:  # in the middle of an epoch
            as_read.resize(7)
            loader.resize(7)
        expected, came = as_read.next(), loader.next()
        assert [*came] == [*expected]
        assert {n: t.dtype for n, t in came.items()} == {n: t.dtype for n, t in expected.items()}
        assert equal(came, expected)
        assert torch.equal(loader.groups, expected["label"])
    assert loader.done
    assert (loader.shard.where, as_read.shard.where) == (where, AS_READ)


@everywhere
def test_what_is_left_of_an_epoch_and_what_is_begun_again_come_alike(where):
    fields, left = samples(14), samples(9, begin=50)
    as_read, loader = loader_of(fields), loader_of(fields, ROOMS[where])
    as_read.go_on_with(TrainingShard(left), longest=9, dealings=[(2, 5), (1, 2)])
    rest = TrainingShard(left, group="label", room=ROOMS[where])
    loader.go_on_with(rest, longest=9, dealings=[(2, 5), (1, 2)])
    said = as_read.to_plain(ranks=1)
    for step in range(40):
        if as_read.done:
            break
        if step == 6:
            as_read.again(step)
            loader.again(step)
        if step == 8:  # a roll back, which takes over the shard as it lies
            as_read.go_on({**said, "place": 0})
            loader.go_on({**said, "place": 0})
        assert equal(loader.next(), as_read.next())
    assert loader.done
    assert loader.shard.where == where


@everywhere
def test_nobody_is_given_memory_of_a_shard(where):
    fields = samples(8)
    loader = loader_of(fields, ROOMS[where], batch=8)
    for _ in range(EPOCHS):
        came = loader.next()
        order = came["sample_id"].argsort()
        assert equal({name: tensor[order] for name, tensor in came.items()}, fields)
        for tensor in came.values():
            tensor.zero_()


@pytest.mark.parametrize("where", [ON_DEVICE, PINNED])
def test_what_was_read_is_let_go_of_once_it_was_moved(where):
    fields = samples(16)
    read = weakref.ref(fields["image"])
    loader = loader_of(fields, ROOMS[where])
    del fields
    there = []
    for _ in range(8):
        loader.next()
        there.append((loader.shard.where, read() is not None))
    after = {ON_DEVICE: 3, PINNED: 5}[where]
    assert there == [(AS_READ, True)] * after + [(where, False)] * (8 - after)


@pytest.mark.parametrize("count", [0, 1])
@everywhere
def test_a_rank_may_have_no_sample(where, count):
    loader = loader_of(samples(count), ROOMS[where])
    loader.measure(11)
    while not loader.done:
        came = loader.next()
        assert came["image"].shape[1:] == (2, 3, 5)
        assert len(came["label"]) == len(loader.groups) <= count
    assert loader.shard.none["image"].shape == (0, 2, 3, 5)


def test_a_shard_moves_once_it_is_known_what_steps_need_and_by_what_is_free_then():
    fields = samples(16)
    size = 16 * RowLayout.of({name: t for name, t in fields.items() if name != "sample_id"}).row_bytes
    enough, short = size / DEVICE_SHARE + 1, size / DEVICE_SHARE
    pinned = 2 ** math.ceil(math.log2(size))  # torch takes that much of the host
    assert size < pinned
    asked = []

    def places(on_device, in_host, **small):
        room = ShardRoom(lambda: asked.append(0) or on_device, lambda: in_host, **small)
        loader = loader_of(fields, room, batch=2)
        told = []
        for _ in range(KNOWN_AFTER + 2):
            loader.next()
            told.append((loader.shard.where, len(asked)))
        asked.clear()
        return told

    moved = places(enough, 0)
    assert moved == [(AS_READ, 0)] * KNOWN_AFTER + [(ON_DEVICE, 1)] * 2
    assert places(short, pinned / HOST_SHARE + 1, pinned_row_bytes=size // 16)[-1] == (PINNED, 1)
    assert places(short, pinned / HOST_SHARE, pinned_row_bytes=size // 16)[-1] == (AS_READ, 1)
    assert places(short, MUCH, pinned_row_bytes=size // 16 + 1)[-1] == (AS_READ, 1)


def test_what_is_pinned_counts_as_what_torch_takes_for_it():
    """One row of 9 MiB is a block of its own, and takes 16 MiB."""
    room = ShardRoom(lambda: 0, lambda: 64 * MIB + 1)
    assert room.takes_pinned(2, row_bytes=8 * MIB)
    assert not room.takes_pinned(3, row_bytes=9 * MIB)


class FullDevice(TorchDispatchMode):
    """Has no memory for what is larger than so many bytes."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if isinstance(made, torch.Tensor) and made.is_meta and made.nbytes > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more.")
        return made


def test_without_memory_on_the_device_after_all_a_shard_is_pinned():
    room = replace(ROOMS[ON_DEVICE], in_host=lambda: MUCH, block_bytes=10**6, pinned_row_bytes=0)
    loader = loader_of(samples(64), room, device="meta")
    with FullDevice(most=20 * 512):
        for _ in range(4):
            loader.next()
    assert loader.shard.where == PINNED


class FullHost(TorchDispatchMode):
    """Has no memory to pin for blocks of ten rows, but for the first ones."""

    def __init__(self, first, error):
        super().__init__()
        self.left, self.error = first, error

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if function._schema.name == "aten::empty" and made.is_cpu and len(made) in (5, 10):
            self.left -= 1
            if self.left < 0:
                raise self.error
        return made


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("where", [ON_DEVICE, PINNED])
def test_where_no_more_can_be_pinned_after_all_a_shard_stays_as_it_was_read(where, first):
    fields = samples(32)
    loader, same = (loader_of(fields, room) for room in (ROOMS[where], None))
    with FullHost(first, RuntimeError("CUDA error: out of memory")):
        for _ in range(8):
            assert equal(loader.next(), same.next())
    assert loader.shard.where == AS_READ
    loader = loader_of(fields, ROOMS[where])
    with FullHost(first, RuntimeError("something else")), pytest.raises(RuntimeError, match="else"):
        [loader.next() for _ in range(8)]


class Copies(NoWaiting):
    """Counts what is copied to the device and what is gathered, by where it is done."""

    def __init__(self):
        super().__init__("meta")
        self.counted = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function._schema.name.partition("::")[2]
        made = super().__torch_dispatch__(function, types, arguments, named)
        if isinstance(made, torch.Tensor) and made.is_meta:
            host = [a for a in arguments if isinstance(a, torch.Tensor) and not a.is_meta]
            if host or name == "index_select":
                self.counted.append((name, len(made) if made.dim() == 2 or name != "copy_" else 1))
        return made


@everywhere
def test_a_mini_batch_is_one_gather_or_a_copy_of_each_sample_and_the_host_waits_for_none(where):
    """On torch's device "meta", of which nothing can be read."""
    loader = loader_of(samples(16), ROOMS[where], device="meta")
    counted = []
    for _ in range(8):
        with Copies() as copies:
            came = loader.next()
        assert {name: t.device.type for name, t in came.items() if not t.is_meta} == {"sample_id": "cpu"}
        assert loader.groups.is_cpu
        counted.append(copies.counted)
    packed, order, gather = ("_to_copy", 4), ("_to_copy", 16), ("index_select", 4)
    moved = [[("copy_", 10), packed], [("copy_", 6), order, gather], [order, gather], *[[gather]] * 3]
    expected = {
        ON_DEVICE: moved,
        PINNED: [[packed]] * 3 + [[("copy_", 1)] * 4] * 3,
        AS_READ: [[packed]] * 6,
    }
    assert counted == [[packed], [packed], *expected[where]]
