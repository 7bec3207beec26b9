"""The local store: bounded, rows that stay whole, and what each policy keeps."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from samples import assert_whole, samples
from scipy.stats import chisquare

from rehearsal_kit.base import settings as settings_of_the_kit
from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import LOSS_AWARE
from rehearsal_kit.buffer.draw_plan import plan_draw, plan_group_draw
from rehearsal_kit.buffer.policies import POLICIES, FirstInFirstOut, Quotas, Reservoir, new_policy
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.row_losses import Replayed
from rehearsal_kit.buffer.snapshots import read_shards, write_shard
from rehearsal_kit.buffer.states import BufferState
from rehearsal_kit.buffer.store import LocalStore

LAYOUT = RowLayout.of(samples([]))


def rng(seed=0):
    return np.random.default_rng(seed)


def held(buffer):
    return buffer.layout.unpack(buffer.contents.rows.copy())


def names(buffer):
    return held(buffer)["sample_id"].tolist()


def full(capacity, policy=None):
    buffer = LocalStore(LAYOUT, capacity, policy=policy or Quotas())
    buffer.offer(samples(range(capacity)), [0] * capacity, random=rng())
    return buffer


class Store(RuleBasedStateMachine):
    """Any sequence of offers, draws, changes of capacity, snapshots and restores, for every policy."""

    @initialize(policy=st.sampled_from(list(POLICIES)), capacity=st.integers(0, 12), by_loss=st.booleans())
    def begin(self, policy, capacity, by_loss):
        self.policy = policy
        self.removal = "loss" if by_loss and policy in LOSS_AWARE else "random"
        self.buffer = LocalStore(LAYOUT, capacity, policy=new_policy(policy, 3), removal=self.removal)
        self.told = {}
        self.group_of, self.last_seen, self.clock = {}, {}, 0
        self.twin = None

    def both(self):
        return [buffer for buffer in (self.buffer, self.twin) if buffer is not None]

    @rule(identities=st.lists(st.integers(0, 60), max_size=15), group=st.integers(0, 4), c=st.integers(0, 9))
    def offer(self, identities, group, c):
        self.clock += 1
        batch = samples(identities)
        for buffer in self.both():
            chosen = buffer.policy.candidates(
                batch["sample_id"].numpy(), count=c, intake=buffer.intake, random=rng(self.clock)
            )
            buffer.offer(batch, [group] * len(chosen), random=rng(self.clock), chosen=chosen)
        for place in chosen.tolist():
            self.group_of[identities[place]] = group
            if self.removal == "loss" and np.isnan(self.loss_of(identities[place])):
                self.told.pop(identities[place], None)  # it was let go of, and came again

    def loss_of(self, identity):
        """By the store; NaN for what it does not hold."""
        losses = dict(zip(names(self.buffer), self.buffer.contents.losses.tolist(), strict=True))
        return losses.get(identity, np.nan)

    @rule(identities=st.sets(st.integers(0, 60), max_size=15), seed=st.integers(0, 9))
    @precondition(lambda self: self.removal == "loss")
    def learn(self, identities, seed):
        named = np.array(sorted(identities), dtype=np.int64)
        replayed = Replayed(named, rng(seed).exponential(size=len(named)))
        for buffer in self.both():
            buffer.learn(replayed)
        losses = dict(zip(named.tolist(), replayed.losses.tolist(), strict=True))
        self.told |= {identity: loss for identity, loss in losses.items() if identity in names(self.buffer)}

    @rule(capacity=st.integers(0, 12))
    def resize(self, capacity):
        before = set(names(self.buffer))
        for buffer in self.both():
            buffer.resize(capacity, random=rng(capacity))
        after = set(names(self.buffer))
        assert after <= before
        if self.policy != "reservoir":
            assert len(after) == min(len(before), capacity)

    @rule(threshold=st.integers(2**62, 2**63 - 1))
    @precondition(lambda self: self.policy == "reservoir")
    def trim(self, threshold):
        for buffer in self.both():
            buffer.trim(threshold, random=rng(threshold % 1000))

    @rule()
    def snapshot_and_restore(self):
        """A second store goes on from a file of the first; from now on they must stay equal."""
        buffer, twin = (
            self.buffer,
            LocalStore(LAYOUT, self.buffer.capacity, policy=new_policy(self.policy, 3), removal=self.removal),
        )
        state = BufferState(
            layout=LAYOUT,
            policy=self.policy,
            seed=3,
            capacity=buffer.capacity,
            contents=buffer.contents,
            policy_state=buffer.policy.state(),
            step=0,
            pending=None,
            drawn=None,
        )
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Path(folder), state, rank=0, ranks=1)
            state = read_shards(Path(folder), rank=0, ranks=1)
            twin.fill(state.contents, state=state.policy_state)  # its rows are read now
        assert twin.policy.state() == buffer.policy.state()
        self.twin = twin

    @rule(count=st.integers(1, 9), seed=st.integers(0, 99), by_group=st.booleans())
    def draw(self, count, seed, by_group):
        buffer = self.buffer
        if by_group:
            plan = plan_group_draw([buffer.group_sizes()], [count], rng(seed))
            rows = buffer.index.rows_of(plan.sent_by(0)[0])
        else:
            rows = plan_draw([len(buffer)], [count], rng(seed)).sent_by(0)[0]
        drawn = buffer.layout.unpack(buffer.gather(rows))
        assert_whole(drawn)
        identities = drawn["sample_id"].tolist()
        assert len(set(identities)) == len(identities) == min(count, len(buffer))
        drawn["image"].fill_(-1)  # what was drawn shares no memory with the store

    @invariant()
    def never_more_than_capacity_no_row_lost_or_twice(self):
        assert len(self.buffer) <= self.buffer.capacity
        kept = held(self.buffer)
        assert_whole(kept)
        identities = kept["sample_id"].tolist()
        assert len(set(identities)) == len(identities) == len(self.buffer)
        assert set(identities) <= set(self.group_of)

    @invariant()
    def groups_are_consistent(self):
        counted = {}
        for identity in names(self.buffer):
            counted[self.group_of[identity]] = counted.get(self.group_of[identity], 0) + 1
        assert self.buffer.group_sizes() == dict(sorted(counted.items()))
        index, total = self.buffer.index, len(self.buffer)
        assert sorted(index.rows_of(np.arange(total)).tolist()) == list(range(total))

    @invariant()
    def a_restored_store_goes_on_alike(self):
        if self.twin is not None:
            assert np.array_equal(self.twin.contents.rows, self.buffer.contents.rows)
            assert np.array_equal(self.twin.contents.places, self.buffer.contents.places)
            if self.removal == "loss":
                now, twin = self.buffer.contents, self.twin.contents
                assert np.array_equal(twin.losses, now.losses, equal_nan=True)
                assert np.array_equal(twin.seats, now.seats)

    @invariant()
    def losses_stay_with_their_samples(self):
        here = names(self.buffer)
        self.told = {identity: loss for identity, loss in self.told.items() if identity in here}
        if self.removal == "loss":
            known = [self.told.get(identity, np.nan) for identity in here]
            assert np.array_equal(self.buffer.contents.losses, known, equal_nan=True)

    @invariant()
    def a_reservoir_holds_what_its_threshold_says(self):
        if self.policy == "reservoir":
            held = np.array(names(self.buffer), dtype=np.int64)
            seats = held if self.removal == "random" else self.buffer.contents.seats
            tags = self.buffer.policy.tags(seats)
            assert (tags < self.buffer.policy.threshold).all()
            assert len(np.unique(seats)) == len(held)
            assert set(seats.tolist()) <= set(self.group_of)


Store.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestStore = Store.TestCase


def test_check_4_without_candidates_it_fills_and_then_never_changes():
    buffer = LocalStore(LAYOUT, 20, policy=Quotas())
    for step in range(10):
        batch = samples(range(8 * step, 8 * step + 8))
        chosen = buffer.policy.candidates(8, count=0, intake=buffer.intake, random=rng(step))
        buffer.offer(batch, [0] * len(chosen), random=rng(step), chosen=chosen)
    # The third mini-batch came while there was room: all of it was offered, some in place of others.
    assert len(buffer) == 20
    assert max(names(buffer)) < 24


def test_check_4_with_as_many_candidates_as_samples_each_is_accepted():
    buffer = full(50)
    for step in range(20):
        batch = samples([1000 + step])
        buffer.offer(batch, [0], random=rng(step))
        assert 1000 + step in names(buffer)


def test_check_5_exactly_c_are_offered_and_who_comes_and_who_goes_is_uniform():
    buffer, victims, offered = full(50), np.zeros(50), np.zeros(8)
    for step in range(4000):
        batch = samples(range(100 + 8 * step, 108 + 8 * step))
        chosen = buffer.policy.candidates(8, count=3, intake=buffer.intake, random=rng(step))
        assert len(set(chosen.tolist())) == 3
        offered[chosen] += 1
        before = names(buffer)
        buffer.offer(batch, [0] * 3, random=rng(step + 10**6), chosen=chosen)
        gone = [row for row, (old, new) in enumerate(zip(before, names(buffer), strict=True)) if old != new]
        victims[gone] += 1
    assert chisquare(victims).pvalue > 1e-4
    assert chisquare(offered).pvalue > 1e-4


def test_check_6_a_group_with_its_share_evicts_only_its_own():
    buffer = LocalStore(LAYOUT, 30, policy=Quotas())
    buffer.offer(samples(range(100)), [0] * 100, random=rng())
    buffer.offer(samples(range(100, 300)), [1] * 200, random=rng(1))
    assert buffer.group_sizes() == {0: 15, 1: 15}
    before = sorted(identity for identity in names(buffer) if identity < 100)
    buffer.offer(samples(range(300, 900)), [1] * 600, random=rng(2))
    assert sorted(identity for identity in names(buffer) if identity < 100) == before


def test_check_6_a_sample_that_comes_back_after_its_eviction_is_a_new_one():
    buffer = LocalStore(LAYOUT, 30, policy=Quotas())
    buffer.offer(samples(range(100)), [0] * 100, random=rng())
    buffer.offer(samples(range(100, 300)), [1] * 200, random=rng(1))
    before = sorted(identity for identity in names(buffer) if identity >= 100)
    buffer.offer(samples(range(100)), [0] * 100, random=rng(2))
    assert buffer.group_sizes() == {0: 15, 1: 15}
    assert sorted(identity for identity in names(buffer) if identity >= 100) == before


def test_groups_appear_as_they_come_and_share_the_room():
    buffer = LocalStore(LAYOUT, 12, policy=Quotas())
    for group in range(4):
        buffer.offer(samples(range(100 * group, 100 * group + 50)), [group] * 50, random=rng(group))
    assert buffer.group_sizes() == {0: 3, 1: 3, 2: 3, 3: 3}


def test_more_groups_than_rows_still_fit():
    buffer = LocalStore(LAYOUT, 3, policy=Quotas())
    for group in range(8):
        buffer.offer(samples([group]), [group], random=rng(group))
    assert len(buffer) == sum(buffer.group_sizes().values()) == 3


def test_first_in_first_out_holds_the_newest_in_spite_of_changes_of_capacity():
    buffer = LocalStore(LAYOUT, 10, policy=FirstInFirstOut())
    for first in range(0, 26, 2):
        buffer.offer(samples([first, first + 1]), [0, 0], random=rng())
    assert sorted(names(buffer)) == list(range(16, 26))
    buffer.resize(4, random=rng())
    assert sorted(names(buffer)) == [22, 23, 24, 25]
    buffer.resize(6, random=rng())
    buffer.offer(samples([26, 27, 28]), [0] * 3, random=rng())
    assert sorted(names(buffer)) == list(range(23, 29))


class FirstStay(Quotas):
    """What fills the store stays, whatever comes."""

    def make_room(self, group, index, *, capacity, uniform):
        return None


def test_a_policy_may_turn_samples_away_and_the_store_is_as_it_was():
    buffer = full(5, FirstStay())
    buffer.offer(samples(range(3, 9)), [1] * 6, random=rng())
    assert names(buffer) == list(range(5))
    assert buffer.group_sizes() == {0: 3, 1: 2}  # two were held already, and renewed
    buffer.offer(samples(range(9, 12)), [2] * 3, random=rng())
    assert buffer.group_sizes() == {0: 3, 1: 2}
    buffer.resize(6, random=rng())
    buffer.offer(samples([3, 12, 13]), [1] * 3, random=rng())
    assert names(buffer) == [*range(5), 12]


def test_a_sample_that_is_held_is_renewed_and_not_stored_twice():
    buffer = full(4)
    newer = samples([2])
    newer["outputs"] += 7
    buffer.offer(newer, [0], random=rng())
    kept = held(buffer)
    assert sorted(kept["sample_id"].tolist()) == [0, 1, 2, 3]
    row = kept["sample_id"].tolist().index(2)
    assert torch.equal(kept["outputs"][row], newer["outputs"][0])


def test_without_an_identity_several_passes_are_several_samples():
    batch = {"image": torch.ones(2, 3)}
    buffer = LocalStore(RowLayout.of(batch), 6, policy=Quotas())
    for _ in range(2):
        buffer.offer(batch, [0, 0], random=rng())
    assert len(buffer) == 4


def test_quotas_lose_the_largest_group_first_when_capacity_falls():
    buffer = LocalStore(LAYOUT, 30, policy=Quotas())
    buffer.offer(samples(range(30)), [0] * 20 + [1] * 7 + [2] * 3, random=rng())
    buffer.resize(16, random=rng())
    assert buffer.group_sizes() == {0: 7, 1: 6, 2: 3}


def test_settings_know_all_policies_there_are():
    assert tuple(POLICIES) == tuple(settings_of_the_kit.POLICIES)


def test_the_reservoir_needs_an_identity():
    layout = RowLayout.of({"image": torch.zeros(0, 2)})
    with pytest.raises(SettingsError, match=r"sample_id.*image \(2,\) float32.*quotas"):
        LocalStore(layout, 3, policy=Reservoir(0))


BAD = {
    "shape": (samples(range(2)) | {"image": torch.zeros(2, 3, 3)}, r"image \(2, 3, 3\).*image \(2, 2\)"),
    "dtype": (samples(range(2)) | {"image": torch.zeros(2, 2, 2).double()}, r"torch.float64.*float32"),
    "missing field": ({k: v for k, v in samples(range(2)).items() if k != "flag"}, "flag"),
    "unknown field": (samples(range(2)) | {"mask": torch.zeros(2)}, "mask"),
    "unequal length": (samples(range(2)) | {"label": torch.zeros(3, dtype=torch.uint8)}, "equally long"),
    "NaN": (
        samples(range(2)) | {"target": torch.tensor([[0.0], [float("nan")]]).double()},
        "target, sample 1",
    ),
    "infinity": (samples(range(2)) | {"image": torch.full((2, 2, 2), float("inf"))}, "image, sample 0"),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("policy", POLICIES)
def test_bad_samples_are_refused_and_the_store_is_as_it_was(bad, said, policy):
    buffer = full(5, new_policy(policy, 0))
    before, intake = buffer.contents.rows.copy(), buffer.intake
    with pytest.raises(SettingsError, match=said):
        buffer.offer(bad, [0, 0], random=rng())
    assert np.array_equal(buffer.contents.rows, before)
    assert buffer.intake == intake


def test_what_does_not_fit_is_not_restored():
    with pytest.raises(SettingsError, match=r"5 rows.*at most 3"):
        LocalStore(LAYOUT, 3, policy=Quotas()).fill(full(5).contents)
