"""Rows on the device go the way of rows in host memory, whatever is done with them, and move there alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from samples import batch_of, new_buffer, placed, samples
from threads import World
from torch.utils._python_dispatch import TorchDispatchMode

from rehearsal_kit.base.device_memory import DeviceMemory, Reading
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import LOSS_AWARE
from rehearsal_kit.base.transfers import BackgroundStream
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.policies import POLICIES, new_policy
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.row_losses import Replayed
from rehearsal_kit.buffer.row_placement import NO_PIECE, NO_ROOM, ON_DEVICE, UNDECIDED, RowPlacement
from rehearsal_kit.buffer.staging import Staging
from rehearsal_kit.buffer.store import LocalStore, spare_rows
from rehearsal_kit.data.shard_room import DEVICE_SHARE, ShardRoom

LAYOUT = RowLayout.of(samples([]))
CAPACITY = 24
STEPS = 150


def store_of(policy="quotas", *, room=None, capacity=CAPACITY, removal="random", device="cpu"):
    placement = RowPlacement(LAYOUT, beside=BackgroundStream(torch.device(device)), room=room)
    return LocalStore(LAYOUT, capacity, policy=new_policy(policy, 3), removal=removal, placement=placement)


def rooms(rank=0, **changes):
    return placed(rank, "device", **changes).room


class Both:
    """The same store twice: in host memory, and moving to the device; both are changed alike."""

    def __init__(self, policy, removal, seed):
        self.here = store_of(policy, removal=removal)
        self.there = store_of(policy, removal=removal, room=rooms(known_after=20))
        self.random = np.random.default_rng(seed)
        self.removal = removal
        self.staging = Staging(LAYOUT, "cpu")
        self.frozen = []
        self.done = Counter()

    def offer(self, step):
        random = self.random
        identities = random.integers(200, size=random.integers(1, 9)).tolist()
        batch, groups = samples(identities), random.integers(3, size=len(identities)).tolist()
        every = np.arange(len(identities))
        packed_there = random.random() < 0.5  # as what was offered while it lay there already
        there = self.staging.hand_over_there(batch, every, copy=step % 2 == 0).accepted()
        if packed_there and len(every) > 2:  # as a full store takes exactly c of them
            every, groups, there = every[1:-1], groups[1:-1], there.some(every[1:-1])
        self.here.offer(batch, groups, random=np.random.default_rng(step), chosen=every)
        accepted = there if packed_there else LAYOUT.accept(batch, every)
        self.there.offer_accepted(accepted, groups, random=np.random.default_rng(step))

    def learn(self):
        named = np.unique(self.random.integers(200, size=9))
        replayed = Replayed(named, self.random.exponential(size=len(named)))
        for store in (self.here, self.there):
            store.learn(replayed)

    def resize(self, step):
        capacity = int(self.random.integers(CAPACITY // 3, CAPACITY + 1))
        for store in (self.here, self.there):
            store.resize(capacity, random=np.random.default_rng(step))

    def freeze(self):
        if len(self.frozen) < 2:
            self.frozen.append([self.there.freeze().rows, self.here.contents.rows.copy(), 0])

    def read(self, count):
        for each in self.frozen:
            rows, expected, read = each
            assert np.array_equal(rows[read : read + count], expected[read : read + count])
            each[2] += count
        self.frozen = [each for each in self.frozen if each[2] < len(each[1])]

    def trim(self, step):
        threshold = int(self.here.policy.threshold * 0.9)
        for store in (self.here, self.there):
            store.trim(threshold, random=np.random.default_rng(step))

    def require_same(self):
        here, there = self.here.contents, self.there.contents
        assert np.array_equal(there.rows[:], here.rows)
        assert np.array_equal(there.groups, here.groups)
        assert np.array_equal(there.places, here.places)
        if self.there.there is None:
            return
        drawn = self.random.integers(len(self.here), size=6) if len(self.here) else np.zeros(0, np.int64)
        rows, numbers = self.there.there.take_there(drawn)
        assert np.array_equal(rows.numpy(), self.here.gather(drawn))
        assert np.array_equal(numbers, LAYOUT.number_table(self.here.gather(drawn)))


@pytest.mark.parametrize("removal", ["random", "loss"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_store_on_the_device_holds_what_one_in_host_memory_holds(policy, removal):
    """While it fills up, moves there, changes, is cut down, takes another capacity, and is read meanwhile."""
    if removal == "loss" and policy not in LOSS_AWARE:
        pytest.skip("the rows of this policy go in an order of their own")
    both = Both(policy, removal, seed=5)
    for step in range(STEPS):
        both.there.place()
        both.offer(step)
        if removal == "loss":
            both.learn()
        if step % 25 == 24:
            both.resize(step)
        if step % 10 == 9 and policy == "reservoir":
            both.trim(step)
        if step % 7 == 5:
            both.freeze()
        both.read(count=3)
        both.require_same()
        both.done[both.there.placed] += 1
    assert both.done[UNDECIDED] > 30  # of which it is known from the 20th on
    assert both.done[ON_DEVICE] > 80


def test_what_is_read_is_what_was_held_though_all_of_it_changes_meanwhile():
    store = store_of(room=rooms(known_after=0, block_bytes=10**6))
    store.offer(samples(range(CAPACITY)), [0] * CAPACITY, random=np.random.default_rng(0))
    store.place()
    assert store.placed == ON_DEVICE
    before, frozen = store.contents.rows[:], store.freeze().rows
    first = frozen[0:5]
    for begin in range(100, 400, CAPACITY):
        store.offer(
            samples(range(begin, begin + CAPACITY)), [0] * CAPACITY, random=np.random.default_rng(begin)
        )
    assert not np.isin(before, store.contents.rows[:]).all()
    assert frozen.nbytes <= spare_rows(CAPACITY, LAYOUT.row_bytes) * LAYOUT.row_bytes
    assert np.array_equal(np.concatenate([first, frozen[5:CAPACITY]]), before)


def test_rows_move_once_it_is_known_what_steps_need_and_block_by_block():
    asked = []
    wanted = CAPACITY * LAYOUT.row_bytes
    room = ShardRoom(
        lambda: asked.append(0) or wanted / DEVICE_SHARE + 1, lambda: 0, known_after=2, block_bytes=1
    )
    store = store_of(room=room)
    store.offer(samples(range(6)), [0] * 6, random=np.random.default_rng(0))
    told = []
    for _ in range(8):
        store.place()
        told.append((store.placed, len(asked)))
    assert told == [(UNDECIDED, 0)] * 2 + [(UNDECIDED, 1)] * 5 + [(ON_DEVICE, 1)]


def test_rows_move_faster_than_they_come():
    store = store_of(room=rooms(known_after=0))
    for step in range(20):
        store.offer(samples(range(step, step + 1)), [0], random=np.random.default_rng(0))
        store.place()
    assert store.placed == ON_DEVICE


def test_where_there_is_no_room_rows_stay_and_are_asked_about_again_with_another_capacity():
    free = [CAPACITY * LAYOUT.row_bytes / DEVICE_SHARE]
    room = ShardRoom(lambda: free[0], lambda: 0, known_after=0, block_bytes=10**6)
    store = store_of(room=room)
    told = []

    def resize(capacity):
        store.resize(capacity, random=np.random.default_rng(0))
        told.append(store.placed)
        store.place()
        told.append(store.placed)

    resize(CAPACITY)
    resize(CAPACITY - 1)
    assert told == [UNDECIDED, NO_ROOM, UNDECIDED, ON_DEVICE]  # a smaller one fits
    resize(CAPACITY)
    assert told[4:] == [ON_DEVICE] * 2  # what lies there moves at once, as the smaller one is given back
    free[0] = 0
    resize(2 * CAPACITY)
    assert told[6:] == [NO_ROOM] * 2
    assert store.there is None


def test_nobody_asks_before_a_shard_has_asked_as_only_then_it_is_known_what_steps_take():
    memory = DeviceMemory(lambda: Reading(free=10**9, kept=0, peak=0), lambda: None)
    room = ShardRoom(memory.free, lambda: 0, known_after=0, block_bytes=10**6, counted=memory)
    store = store_of(room=room)
    room.begin()
    store.place()
    assert store.placed == UNDECIDED
    room.takes_on_device(10)
    store.place()
    assert store.placed == ON_DEVICE
    room.begin()  # another task, while the buffer takes another capacity
    store.resize(CAPACITY - 1, random=np.random.default_rng(0))
    store.place()
    assert (store.placed, store.there) == (UNDECIDED, None)
    room.takes_on_device(10)
    store.place()
    assert store.placed == ON_DEVICE


class FullDevice(TorchDispatchMode):
    """Has no memory for what is larger than so many bytes."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if isinstance(made, torch.Tensor) and made.nbytes > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more.")
        return made


def test_without_such_a_piece_of_memory_after_all_rows_stay_in_host_memory():
    store = store_of(room=rooms(known_after=0))
    store.offer(samples(range(6)), [0] * 6, random=np.random.default_rng(0))
    with FullDevice(most=20 * LAYOUT.row_bytes):
        store.place()
    assert (store.placed, store.there) == (NO_PIECE, None)
    store.place()
    assert store.placed == NO_PIECE


def test_what_was_promised_is_not_free_for_the_next_until_steps_show_it():
    """Ten are free, and of what torch keeps two are not needed: both ask in the same step."""
    reading = [Reading(free=10, kept=8, peak=6)]
    memory = DeviceMemory(lambda: reading[0], lambda: None)
    shards = ShardRoom(memory.free, lambda: 0, counted=memory)
    assert not shards.is_known()
    assert memory.free() == 12
    assert shards.takes_on_device(2)
    assert shards.is_known()
    assert memory.free() == 10  # wherever torch takes them from
    assert not shards.takes_on_device(3)
    reading[0] = Reading(free=9, kept=9, peak=8)  # a step with them, half of them in memory that was free
    assert memory.free() == 10
    shards.begin()
    assert not shards.is_known()
    reading[0] = Reading(free=9, kept=9, peak=4)
    assert memory.free() == 14


def test_what_is_not_finite_is_refused_in_the_words_of_host_memory():
    batch = samples(range(8))
    batch["image"][5, 1, 1] = float("nan")
    staging, chosen = Staging(LAYOUT, "cpu"), np.array([2, 5, 7])
    said = []
    for hand_over in (staging.hand_over, staging.hand_over_there):
        offered = hand_over(batch, chosen, copy=False)
        with pytest.raises(SettingsError) as refused:
            offered()
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert "field image, sample 5 of the batch" in said[0]
    sound = staging.hand_over_there(batch, chosen[[0, 2]], copy=False)
    assert np.array_equal(sound(), LAYOUT.pack(batch, chosen[[0, 2]]))


class OverGloo(GroupExchange):
    """The ranks share a GPU: what goes with the gradients passes their hosts."""

    def carries(self, device):
        return False


def share_a_gpu(groups):
    buffer = new_buffer(groups, exchange=OverGloo(groups), device=placed(groups.rank, "device"))
    for step in range(8):
        drawn = buffer.advance()
        buffer.offer(batch_of(groups.rank, step, 4), group=0)
    buffer.close()
    return buffer.placed, len(drawn.owners)


def test_where_ranks_share_a_gpu_rows_stay_in_host_memory_and_go_between_hosts():
    world = World(2, dies=(0, 0))  # at the first collective of a thread that trains, of which there is none
    assert world.run(share_a_gpu) == [((UNDECIDED, UNDECIDED), 6)] * 2
