"""Loss-aware removal: which row goes, how owners learn of losses, and what stays as with random removal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import RankPool
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from samples import batch_of, identity_of, new_buffer, rank_of, samples
from scipy.stats import chisquare

from rehearsal_kit.base.errors import SettingsError, SnapshotError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.group_index import GroupIndex
from rehearsal_kit.buffer.policies import Quotas, Reservoir
from rehearsal_kit.buffer.removal import LossAwareRemoval
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.row_losses import Replayed
from rehearsal_kit.buffer.snapshots import read_shards
from rehearsal_kit.buffer.states import Round
from rehearsal_kit.buffer.store import LocalStore

LAYOUT = RowLayout.of({"sample_id": torch.zeros(0, dtype=torch.int64)})


def rng(seed=0):
    return np.random.default_rng(seed)


# Which row goes --------------------------------------------------------------------------------------------


def chances(losses, removals):
    """How often each row goes in the place of one that is chosen uniformly."""
    index, random = GroupIndex.of([0] * len(losses)), rng(3)
    match, counts = LossAwareRemoval(losses, random), np.zeros(len(losses))
    for row in random.integers(len(losses), size=removals).tolist():
        counts[match.instead_of(row, index)] += 1
    return counts


def test_every_row_goes_with_the_chance_that_its_docstring_says():
    rows, unknown = 60, 10
    losses = np.concatenate([np.full(unknown, np.nan), rng(1).permutation(50) ** 3.0])
    counts = chances(losses, 40_000)
    capped = np.sort(losses[unknown:])[-10:]
    random_like = np.isnan(losses) | (losses >= capped[0])
    larger = np.array([np.sum((losses > loss) & ~random_like) for loss in losses])
    share = (random_like.sum() + 2 * larger + 1) / rows  # 1: a row may meet itself
    expected = np.where(random_like, 1.0, share) / rows
    assert expected.sum() == pytest.approx(1)
    assert chisquare(counts, expected * counts.sum()).pvalue > 1e-4
    assert chisquare(counts).pvalue < 1e-10  # random removal is something else


@pytest.mark.parametrize("known", [0, 1, 2, 5])
def test_where_hardly_anything_is_known_rows_go_as_at_random(known):
    losses = np.full(40, np.nan)
    losses[:known] = np.arange(known)
    counts = chances(losses, 8000)
    assert chisquare(counts[known:]).pvalue > 1e-4
    assert counts[:known].sum() == pytest.approx(8000 * known / 40, rel=0.2)


SHARE, CAPACITY = 0.05, 200
BROKEN_LOSS = 1e3


def loss_of(identity):
    """One in twenty is broken for ever; the others are as hard as they are."""
    sound = (identity * 7919 % 1000) / 1000
    return np.where(identity % 20 == 0, BROKEN_LOSS, sound)


def streamed(removal, *, steps=500):
    """Shares in a store over the later half of a stream: of easy, middle, hard and broken rows."""
    store = LocalStore(LAYOUT, CAPACITY, policy=Quotas(), removal=removal)
    bands, looked = np.zeros(4), 0
    for step in range(steps):
        identity = 16 * step + np.arange(16)
        store.offer({"sample_id": torch.from_numpy(identity)}, [step % 2] * 16, random=rng([1, step]))
        held = LAYOUT.packed_identities(store.contents.rows)
        drawn = held[rng([2, step]).integers(len(held), size=100)]
        store.learn(Replayed(drawn, loss_of(drawn)))
        if step >= steps // 2:
            band = np.where(held % 20 == 0, 3, (3 * loss_of(held)).astype(int))
            bands += np.bincount(band, minlength=4)
            looked += len(held)
    return bands / looked


def test_broken_rows_have_no_larger_share_than_with_random_removal_and_what_is_hard_stays():
    random, by_loss = streamed("random"), streamed("loss")
    assert random[3] == pytest.approx(SHARE, rel=0.25)
    assert by_loss[3] <= 1.15 * SHARE
    easy, middle, hard, _ = by_loss / (random.clip(1e-9))
    assert easy < 0.8
    assert easy < middle < hard
    assert hard > 1.15


def test_without_the_cap_broken_rows_would_be_kept(monkeypatch):
    monkeypatch.setattr(LossAwareRemoval, "_cap", lambda *_: np.inf)
    assert streamed("loss")[3] > 1.5 * SHARE


def test_in_a_large_group_broken_rows_go_as_at_random_although_some_of_it_is_looked_at():
    losses = np.concatenate([np.full(200, BROKEN_LOSS), rng().exponential(size=1800)])
    index, gone = GroupIndex.of([0] * 2000), 0
    for change in range(4000):  # the cap is told anew for each
        random = rng([5, change])
        row = int(random.integers(2000))
        gone += LossAwareRemoval(losses, random).instead_of(row, index) < 200
    assert abs(gone - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)


def test_groups_have_the_sizes_that_they_have_with_random_removal():
    stores = [LocalStore(LAYOUT, 30, policy=Quotas(), removal=removal) for removal in ("random", "loss")]
    for step in range(200):
        for store in stores:
            identity = 5 * step + torch.arange(5)
            groups = rng([4, step]).integers(1 + step // 20, size=5).tolist()
            store.offer({"sample_id": identity}, groups, random=rng([1, step]))
            held = LAYOUT.packed_identities(store.contents.rows)
            store.learn(Replayed(held, loss_of(held)))
            if step % 50 == 49:
                store.resize(20 + step // 10, random=rng(step))
        assert stores[0].group_sizes() == stores[1].group_sizes()
    held = [set(LAYOUT.packed_identities(store.contents.rows).tolist()) for store in stores]
    assert held[0] != held[1]


def test_a_smaller_capacity_lets_go_of_small_losses_rather_than_large_ones():
    left = np.zeros(100)
    for seed in range(60):
        store = LocalStore(LAYOUT, 100, policy=Quotas(), removal="loss")
        store.offer({"sample_id": torch.arange(100)}, [0] * 50 + [1] * 50, random=rng())
        store.learn(Replayed(np.arange(100), np.arange(100) % 50 / 50))
        store.resize(50, random=rng(seed))
        assert store.group_sizes() == {0: 25, 1: 25}
        held = LAYOUT.packed_identities(store.contents.rows)
        assert np.array_equal(store.contents.losses, held % 50 / 50)
        left[held] += 1
    by_loss = left.reshape(2, 50).sum(axis=0)
    assert by_loss[:20].mean() < 0.7 * by_loss[20:40].mean()
    assert by_loss[40:].mean() == pytest.approx(60, rel=0.15)  # the upper fifth: as at random, one half


# Reservoir -------------------------------------------------------------------------------------------------


def test_a_reservoir_takes_in_what_it_takes_in_with_random_removal_and_keeps_what_is_hard():
    stores = [LocalStore(LAYOUT, 320, policy=Reservoir(5), removal=name) for name in ("random", "loss")]
    for step in range(300):
        identity = torch.arange(32) + 32 * (step % 150)  # every sample comes twice
        for store in stores:
            store.offer({"sample_id": identity}, [0] * 32, random=rng([1, step]))
            held, losses = LAYOUT.packed_identities(store.contents.rows), store.contents.losses
            if losses is not None:  # they have moved with their rows
                assert np.array_equal(
                    losses, np.where(np.isnan(losses), np.nan, loss_of(held)), equal_nan=True
                )
            store.learn(Replayed(held, loss_of(held)))
        by_tag = LAYOUT.packed_identities(stores[0].contents.rows)
        assert set(stores[1].contents.seats.tolist()) == set(by_tag.tolist())
        assert stores[0].policy.threshold == stores[1].policy.threshold
    held = LAYOUT.packed_identities(stores[1].contents.rows)
    assert len(held) == len(set(held.tolist())) == len(by_tag)
    sound = held[held % 20 != 0]
    assert (loss_of(sound) < 1 / 3).mean() < 0.25
    assert len(held) - len(sound) <= 1.6 * SHARE * len(held)
    halves = np.bincount(held // 2400, minlength=2)
    assert chisquare(halves).pvalue > 1e-4  # and every age alike


# How the owners learn --------------------------------------------------------------------------------------

END = 24


def loss_at(identity, step):
    return (identity % 997) / 997 + step


def told(groups, policy, folder="", at=-1):
    """What this rank drew at each step, and what its store knows of each row in the end."""
    buffer, drawn_at = new_buffer(groups, policy=policy, removal="loss", capacity=24), {}
    first = 0
    if folder and at < 0:
        buffer.load(folder)
        first = buffer.state().step + 1
    for step in range(first, END):
        if step == at:
            buffer.save(folder)
        drawn = buffer.advance(Round(step=step, representatives=5, distillation=2))
        losses = None
        if drawn is not None:
            drawn_at[step] = drawn.samples["sample_id"].tolist()
            losses = loss_at(drawn.samples["sample_id"].double(), step)
        buffer.offer(batch_of(groups.rank, step, 4 - groups.rank), group=step // 6, losses=losses)
    buffer.advance(Round(step=END, representatives=5))
    contents = buffer.state().contents
    held = buffer.layout.packed_identities(contents.rows).tolist()
    buffer.close()
    return drawn_at, dict(zip(held, contents.losses.tolist(), strict=True)), contents.rows.tolist()


@pytest.mark.parametrize("policy", ["quotas", "reservoir"])
def test_every_owner_knows_the_loss_of_the_last_replay_on_any_rank_and_of_others_nothing(pool, policy):
    results = pool(told, policy)
    last = {}
    for drawn_at, _, _ in results:
        for step, identities in drawn_at.items():
            for identity in identities:
                last[identity] = max(step, last.get(identity, 0))
    known = 0
    for _, losses, _ in results:
        for identity, loss in losses.items():
            if identity in last:
                assert loss == loss_at(identity, last[identity])
                known += 1
            else:
                assert np.isnan(loss)
    assert known >= 5
    assert repr(pool(told, policy)) == repr(results)  # and the same again


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory):
    ranks = RankPool(3, tmp_path_factory.mktemp("three"))
    yield ranks
    ranks.close()


@pytest.mark.parametrize("policy", ["quotas", "reservoir"])
def test_a_snapshot_goes_on_bit_by_bit_with_the_losses_on_their_way(pool, tmp_path, policy):
    whole = pool(told, policy, str(tmp_path), 14)
    again = pool(told, policy, str(tmp_path))
    assert [repr(result[1:]) for result in again] == [repr(result[1:]) for result in whole]


def kept(groups, policy, folder):
    buffer = new_buffer(groups, policy=policy, removal="loss", capacity=24)
    buffer.load(folder)
    state = buffer.state()
    buffer.close()
    held = buffer.layout.packed_identities(state.contents.rows[:]).tolist()
    replayed = state.pending.replayed
    return (
        dict(zip(held, state.contents.losses.tolist(), strict=True)),
        dict(zip(replayed.identities.tolist(), replayed.losses.tolist(), strict=True)),
    )


@pytest.mark.parametrize("policy", ["quotas", "reservoir"])
def test_on_another_number_of_ranks_rows_are_dealt_with_their_losses(pool, three_ranks, tmp_path, policy):
    three_ranks(told, policy, str(tmp_path), 14)
    before, after = three_ranks(kept, policy, str(tmp_path)), pool(kept, policy, str(tmp_path))
    for part in (0, 1):
        merged = [{k: v for parts in results for k, v in parts[part].items()} for results in (before, after)]
        assert repr(sorted(merged[0].items())) == repr(sorted(merged[1].items()))
        assert any(np.isfinite(loss) for loss in merged[0].values())
    pool(told, policy, str(tmp_path))  # and it goes on


@pytest.mark.parametrize("now", ["random", "loss"])
def test_a_snapshot_of_either_removal_is_taken_up_by_the_other(tmp_path, now):
    groups, before = ProcessGroups(0, 1), "loss" if now == "random" else "random"
    written = new_buffer(groups, removal=before)
    for step in range(8):
        drawn = written.advance()
        losses = None if drawn is None else drawn.samples["sample_id"].double()
        written.offer(batch_of(0, step, 8), group=0, losses=losses)
    written.save(tmp_path)
    written.close()
    with new_buffer(groups, removal=now) as buffer:
        buffer.load(tmp_path)
        losses = buffer.state().contents.losses
        assert losses is None if now == "random" else np.isnan(losses).all()
        assert len(buffer.advance().samples["sample_id"]) == 6


DAMAGES = {
    "an infinite loss": ({"store/losses": np.full(24, np.inf).view(np.int64)}, "a loss that is infinite"),
    "losses as float64": ({"store/losses": np.zeros(24)}, "dtype 'F64'"),
    "a loss too few": ({"store/losses": np.zeros(23, np.int64)}, "store/losses has 23 numbers"),
    "a seat too many": ({"store/seats": np.zeros(25, np.int64)}, "store/seats has 25 numbers"),
    "losses of nobody": ({"pending/learned": np.zeros(9, np.int64)}, "pending/(learned|replayed) has"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_snapshot_is_refused_in_words(tmp_path, damage, said):
    told(ProcessGroups(0, 1), "quotas", str(tmp_path), 14)
    (path,) = tmp_path.iterdir()
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    save_file({**load_file(path), **damage}, path, metadata=about)
    with pytest.raises(SnapshotError, match=said):
        read_shards(tmp_path, rank=0, ranks=1)


# What stays as it was --------------------------------------------------------------------------------------


def drawn_of_held(groups, removal, steps):
    """How often each sample of a buffer was drawn."""
    own = [30, 10, 0, 20][groups.rank]
    buffer = new_buffer(groups, removal=removal, capacity=30 * groups.ranks, representatives=0)
    buffer.advance()
    buffer.offer(samples(identity_of(groups.rank, 0, place) for place in range(own)), group=0)
    buffer.advance(Round(step=1, representatives=0))
    counts, losses = np.zeros((4, 30)), torch.zeros(0)
    for step in range(2, steps + 2):
        buffer.offer(samples([]), group=0, losses=losses)
        drawn = buffer.advance(Round(step=step, representatives=12))
        losses = drawn.samples["sample_id"].double() % 7
        for identity in drawn.samples["sample_id"].tolist():
            counts[rank_of(identity), identity % 2**17] += 1
    buffer.close()
    return counts


def test_the_draw_stays_uniform_over_all_that_is_stored(pool):
    results = pool(drawn_of_held, "loss", 600 // pool.ranks)
    counts = sum(results)
    held = np.concatenate([counts[rank, :size] for rank, size in enumerate([30, 10, 0, 20][: pool.ranks])])
    assert counts.sum() == held.sum() > 5000
    assert chisquare(held).pvalue > 1e-4
    random = pool(drawn_of_held, "random", 600 // pool.ranks)
    assert all(np.array_equal(one, other) for one, other in zip(results, random, strict=True))


def sizes(groups, removal):
    """Samples of each group that this rank holds, at every step."""
    buffer, seen = new_buffer(groups, removal=removal), []
    for step in range(40):
        drawn = buffer.advance()
        losses = None if drawn is None else drawn.samples["sample_id"].double() % 11
        buffer.offer(batch_of(groups.rank, step, 8 - 2 * groups.rank), group=step // 10, losses=losses)
        groups_held = buffer.state().contents.groups
        seen.append(np.bincount(groups_held, minlength=4).tolist())
    buffer.close()
    return seen


def test_every_rank_holds_as_many_of_each_group_as_with_random_removal(pool):
    assert pool(sizes, "loss") == pool(sizes, "random")


# What is refused -------------------------------------------------------------------------------------------


def test_a_policy_that_leaves_no_choice_is_refused_with_those_that_do():
    with pytest.raises(SettingsError, match=r"policy 'fifo', which leaves no choice.*'quotas', 'reservoir'"):
        Rehearsal(removal="loss", policy="fifo")
    with pytest.raises(SettingsError, match="removal is 'oldest'; it must be one of 'random', 'loss'"):
        Rehearsal(removal="oldest")


def test_a_switch_to_such_a_policy_is_refused_and_changes_nothing():
    with new_buffer(ProcessGroups(0, 1), removal="loss") as buffer:
        for step in range(4):
            with pytest.raises(SettingsError, match="policy 'fifo'"):
                buffer.advance(Round(step=step, representatives=6, policy="fifo"))
            drawn = buffer.advance()
            losses = None if drawn is None else torch.zeros(len(drawn.samples["flag"]))
            buffer.offer(batch_of(0, step, 8), group=0, losses=losses)
        assert drawn.stored == 16


def test_samples_that_cannot_be_known_again_are_refused():
    layout = RowLayout.of({"image": torch.zeros(0, 2)})
    with pytest.raises(SettingsError, match=r"removal='loss' needs a field sample_id.*removal='random'"):
        LocalStore(layout, 3, policy=Quotas(), removal="loss")


def test_what_offers_before_it_knows_the_losses_is_refused():
    with (
        DistributedBuffer.over_world(samples([1]), Rehearsal(removal="loss"), seed=1) as buffer,
        pytest.raises(SettingsError, match=r"augment\(\) offers samples before any loss is known"),
    ):
        buffer.augment(samples([1]))


def test_as_many_losses_are_taken_as_samples_were_drawn():
    with new_buffer(ProcessGroups(0, 1), removal="loss") as buffer:
        buffer.advance()
        with pytest.raises(SettingsError, match=r"losses came as \(3,\) for 0 representatives"):
            buffer.offer(batch_of(0, 0, 8), group=0, losses=torch.zeros(3))
        with pytest.raises(SettingsError, match=r"losses came as list; give a tensor, \(drawn,\)"):
            buffer.offer(batch_of(0, 0, 8), group=0, losses=[1.0])
        buffer.offer(batch_of(0, 0, 8), group=0)


def test_a_loss_that_is_no_number_says_nothing_of_its_sample():
    with new_buffer(ProcessGroups(0, 1), removal="loss") as buffer:
        for step in range(4):
            drawn = buffer.advance()
            count = 0 if drawn is None else len(drawn.samples["flag"])
            losses = torch.tensor([np.nan, np.inf, 2.0, 3.0, 4.0, 5.0][:count])
            buffer.offer(batch_of(0, step, 8), group=0, losses=losses)
        buffer.advance()
        losses = buffer.state().contents.losses
        assert set(losses[~np.isnan(losses)].tolist()) <= {2.0, 3.0, 4.0, 5.0}
        assert np.isfinite(losses).any()
