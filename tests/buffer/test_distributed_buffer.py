"""The distributed buffer between 1, 2 and 4 real ranks: sixteen acceptance checks, and other trouble.

1 integrity of every field, r_d below, equal to and above r; 2 number of rows, none twice in a draw; 3
capacity; 4 filling, also with c = 0 and c = b; 5 acceptance and uniform victims; 6 quotas; 7 uniform over
everything stored anywhere; 8 share of other ranks; 9 one exchange a step; 10 overlap with training; 11 no
aliasing; 12 first steps, every hand-over stored once; 13 life cycle, a killed rank; 14 snapshots; 15
learning; 16 cost of a step.

Checks of one store alone (4, 5, 6) are in test_store.py, 14 in test_snapshots.py, 15 in test_cli.py (ER
below Incremental) and test_training_loop.py (r = 0 is Incremental bit for bit), 16 in `rehearsal-kit bench
step`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import on_ranks
from samples import (
    WatchedRun,
    alone_in_its_store,
    assert_whole,
    batch_of,
    identity_of,
    new_buffer,
    placed,
    rank_of,
    samples,
    step_of,
)
from scipy.stats import chisquare

from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.row_placement import NO_ROOM, ON_DEVICE
from rehearsal_kit.buffer.states import Pending, Round

STEPS = 30
SIZES = [8, 3, 0, 5]


def train(
    groups, *, sizes=(8, 8, 8, 8), steps=STEPS, delay_s=0.0, outputs=torch.float32, device="cpu", copy=True,
    place="host", **settings
):  # fmt: skip
    """A loop as a rank runs it; rank r hands over sizes[r] samples at every step."""
    exchange = WatchedRun(groups, delay_s=delay_s)
    lies = placed(groups.rank, place, name=device)
    buffer = new_buffer(groups, exchange=exchange, outputs=outputs, device=lies, **settings)
    random, seen = np.random.default_rng(groups.rank), []
    for step in range(steps):
        drawn = buffer.advance()
        fresh = batch_of(groups.rank, step, sizes[groups.rank])
        fresh["outputs"] = fresh["outputs"].to(outputs)
        fresh = {name: tensor.to(device) for name, tensor in fresh.items()}
        time.sleep(random.uniform(0, delay_s))
        buffer.offer(fresh, group=step // 10, copy=copy)
        for tensor in fresh.values() if copy else ():
            tensor.zero_()  # check 11: the loader may use its memory again
        fresh.clear()  # lent are the tensors
        assert (drawn is None) == (step == 0)
        if drawn is not None:
            assert_whole(drawn.samples, outputs=outputs)
            assert_whole(drawn.distillation, outputs=outputs)
            again = drawn.distillation["sample_id"].tolist()
            seen.append(
                (step, drawn.samples["sample_id"].tolist(), again, drawn.owners.tolist(), drawn.stored)
            )
    buffer.close()
    assert exchange.exchanges <= steps  # check 9: one exchange of rows a step
    if place != "host":
        there = [ON_DEVICE if place == "device" or rank % 2 else NO_ROOM for rank in range(groups.ranks)]
        assert buffer.placed == tuple(there)
        assert exchange.begun == (exchange.exchanges if groups.ranks > 1 else 0)
    return seen


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
@pytest.mark.parametrize("distillation", [0, 2, 6, 9])
def test_checks_1_2_12_rows_are_whole_real_and_as_many_as_can_be(pool, policy, distillation):
    settings = {"policy": policy, "distillation": distillation, "sizes": SIZES}
    for rank, seen in enumerate(pool(_train_with, settings)):
        assert len(seen) == STEPS - 1
        for step, first, again, owners, stored in seen:
            assert len(set(first)) == len(first) == len(owners) == min(6, stored), rank
            assert len(set(again)) == len(again) == min(distillation, stored)
            assert owners == [rank_of(identity) for identity in first]
            # Stored at least two steps ago: nothing is drawn that is still in flight.
            assert all(step_of(identity) <= step - 2 for identity in first + again)
            assert stored or step < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
def test_on_a_gpu_the_mini_batches_are_those_of_the_cpu(pool, policy):
    settings = {"policy": policy, "distillation": 3, "sizes": SIZES}
    assert pool(_train_with, settings | {"device": "cuda"}) == pool(_train_with, settings)


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
def test_what_is_lent_is_stored_as_what_is_copied(pool, policy):
    settings = {"policy": policy, "distillation": 3, "sizes": SIZES, "delay_s": 0.002}
    assert pool(_train_with, settings | {"copy": False}) == pool(_train_with, settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"place": "device", "draw": "groups", "half": ("outputs",), "distillation": 3},
        {"place": "either", "policy": "reservoir", "delay_s": 0.002, "outputs": torch.bfloat16},
        {"place": "device", "policy": "fifo", "draw": "earlier", "copy": False, "distillation": 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_wherever_rows_lie_the_mini_batches_are_the_same(pool, settings):
    """With room on the device they are exchanged there, among the sums of the thread that trains."""
    settings = {"sizes": SIZES, "capacity": 30, **settings}
    assert pool(_train_with, settings) == pool(_train_with, settings | {"place": "host"})


def _train_with(groups, settings):
    return train(groups, **settings)


@pytest.mark.parametrize("outputs", [torch.float16, torch.bfloat16, torch.float64])
def test_check_1_outputs_keep_their_dtype(pool, outputs):
    assert all(seen for seen in pool(_train_with, {"outputs": outputs}))


def test_check_1_fields_stored_as_float16_come_back_in_their_dtype(pool):
    assert all(seen for seen in pool(_train_with, {"half": ("outputs",)}))


def test_check_2_two_draws_of_one_step_are_independent(pool):
    for seen in pool(_train_with, {"distillation": 6, "steps": 60}):
        shared = [len(set(first) & set(again)) for _, first, again, _, stored in seen if stored == 40]
        # Hypergeometric: 6 of 40, six times: mean 0.9, standard deviation 0.82 a step.
        assert abs(np.mean(shared) - 0.9) < 4 * 0.82 / np.sqrt(len(shared))


def fill(groups, sizes, *, groups_of=lambda rank, place: 0, exchange=None, **settings):
    """A buffer in which rank r holds sizes[r] samples, and the samples it took."""
    own = sizes[groups.rank]
    values = {"capacity": max(sizes) * groups.ranks or 1, "representatives": 0, **settings}
    buffer = new_buffer(groups, exchange=exchange, **values)
    buffer.advance()
    batch = samples(identity_of(groups.rank, 0, 0) + place for place in range(own))
    buffer.offer(batch, group=[groups_of(groups.rank, place) for place in range(own)])
    buffer.advance(Round(step=1, representatives=0))
    return buffer


DRAWN = 40


def counts_of_draws(groups, sizes, steps, local=False, draw="samples", drawn_each=DRAWN):
    """How often this rank drew each sample, over all steps, and from how many of others."""
    exchange = alone_in_its_store(groups) if local else None
    buffer = fill(
        groups, sizes, exchange=exchange, draw=draw, groups_of=lambda rank, place: rank + (place < 2)
    )
    counts, remote = np.zeros((4, max(sizes))), 0
    for step in range(2, steps + 2):
        buffer.offer(samples([]), group=0)
        drawn = buffer.advance(Round(step=step, representatives=drawn_each))
        for identity in drawn.samples["sample_id"].tolist():
            counts[rank_of(identity), identity % 2**17] += 1
        remote += int((drawn.owners != groups.rank).sum())
    buffer.close()
    return counts, remote


FILLS = {1: [150], 2: [150, 50], 4: [120, 20, 0, 50]}


def test_check_7_every_stored_sample_is_drawn_equally_often_anywhere(pool):
    fills = FILLS[pool.ranks]
    # Many a step: a step costs the same whatever is drawn in it.
    results = pool(counts_of_draws, fills, 1_040 // pool.ranks, False, "samples", 100)
    counts = sum(counts for counts, _ in results)
    held = np.concatenate([counts[rank, :size] for rank, size in enumerate(fills)])
    assert counts.sum() == held.sum() >= 100_000  # nothing that was not stored
    assert chisquare(held).pvalue > 1e-4
    assert held[0] > 0


def test_check_7_the_test_of_uniformity_fails_for_a_local_draw(pool):
    if pool.ranks == 1:
        pytest.skip("a rank that is alone draws from everything")
    fills = [120, 40, 60, 90][: pool.ranks]
    results = pool(counts_of_draws, fills, 150, True)
    counts = sum(counts for counts, _ in results)
    held = np.concatenate([counts[rank, :size] for rank, size in enumerate(fills)])
    assert chisquare(held).pvalue < 1e-10
    assert [remote for _, remote in results] == [
        0 if rank == 0 else 149 * DRAWN for rank in range(pool.ranks)
    ]


def test_check_7_with_weights_every_group_is_drawn_equally_often(pool):
    fills = FILLS[pool.ranks]
    results = pool(counts_of_draws, fills, 1000 // pool.ranks, False, "groups")
    counts = sum(counts for counts, _ in results)
    of_group = {}
    for rank, size in enumerate(fills):
        for place in range(size):
            of_group.setdefault(rank + (place < 2), []).append(counts[rank, place])
    # Equal shares; groups smaller than their share give all they have.
    assert len(of_group) == {1: 2, 2: 3, 4: 5}[pool.ranks]
    large = [sum(group) for group in of_group.values() if len(group) > 5]
    assert max(large) / min(large) < 1.05
    for group in of_group.values():
        assert chisquare(group).pvalue > 1e-4


def draws_of_earlier(groups, sizes, steps):
    """How often this rank drew each sample while a newest group comes, on one rank alone at every step."""
    buffer = fill(groups, sizes, draw="earlier", capacity=10_000, groups_of=lambda rank, place: place % 3)
    counts, newest = np.zeros((4, max(sizes))), 0
    for step in range(2, steps + 2):
        own = [identity_of(groups.rank, step, 0)] if step % groups.ranks == groups.rank else []
        buffer.offer(samples(own), group=7)
        drawn = buffer.advance(Round(step=step, representatives=2 * DRAWN))
        for identity in drawn.samples["sample_id"].tolist():
            if identity % 2**17 < max(sizes):
                counts[rank_of(identity), identity % 2**17] += 1
            else:
                newest += 1
    buffer.close()
    return counts, newest


def test_check_7_of_the_newest_group_of_any_rank_nothing_is_drawn_and_of_others_equally_often(pool):
    fills = FILLS[pool.ranks]
    results = pool(draws_of_earlier, fills, 500 // pool.ranks)
    counts = sum(counts for counts, _ in results)
    held = np.concatenate([counts[rank, :size] for rank, size in enumerate(fills)])
    assert sum(newest for _, newest in results) == 0
    assert chisquare(held[held > 0]).pvalue > 1e-4
    assert (held > 0).all()


def test_check_8_the_remote_share_is_that_of_the_other_ranks(pool):
    results = pool(counts_of_draws, [80] * pool.ranks, 100)
    share, draws = 1 - 1 / pool.ranks, 99 * DRAWN
    for _, remote in results:
        assert abs(remote - share * draws) <= 4 * np.sqrt(draws * share * (1 - share))


def numbers_of_unequal_draws(groups):
    """How many samples this rank got in each draw, step by step, and how many of these are distinct."""
    buffer, seen = fill(groups, [9, 2, 0, 5]), []
    fewer = (groups.ranks - 1, groups.ranks // 2)
    for step in range(2, 8):
        buffer.offer(samples([]), group=0)
        drawn = buffer.advance(Round(step=step, representatives=1, distillation=3, fewer=fewer))
        parts = [part["sample_id"].tolist() for part in (drawn.samples, drawn.distillation)]
        seen.append([(len(part), len(set(part))) for part in parts])
    buffer.close()
    return seen


def test_of_what_cannot_be_divided_the_last_ranks_draw_one_less(pool):
    """One representative for all ranks together: all but the first draw none, and wait for nobody."""
    for rank, seen in enumerate(pool(numbers_of_unequal_draws)):
        first, again = int(rank == 0), 3 - (rank >= pool.ranks - pool.ranks // 2)
        assert seen == [[(0, 0), (0, 0)], *[[(first, first), (again, again)]] * 5]


def hold_the_gate(groups):
    """Check 10: the rows of step t travel while step t trains, however slow they are."""
    entered, gate, last = threading.Semaphore(0), threading.Semaphore(0), 11

    class Gated(WatchedRun):
        def rows(self, outgoing, plan, empty):
            entered.release()
            assert gate.acquire(timeout=60)
            return super().rows(outgoing, plan, empty)

    buffer, held, outside = new_buffer(groups, exchange=Gated(groups)), 0.0, 0.0
    for step in range(last + 1):
        began = time.perf_counter()
        drawn = buffer.advance()
        outside += time.perf_counter() - began
        buffer.offer(batch_of(groups.rank, step, 8), group=0)  # would never be reached if advance waited
        if drawn is not None and step > 1:
            assert_whole(drawn.samples)
        if step >= 1:  # nothing is drawn at step 0
            assert entered.acquire(timeout=60)
            began = time.perf_counter()
            time.sleep(0.01)
            held += time.perf_counter() - began if step < last else 0.0  # the last job is never taken
            gate.release()
    buffer.close()
    assert 0 <= buffer.waited <= outside
    return buffer.worked - buffer.waited, held


def test_check_10_training_goes_on_while_rows_travel(pool):
    for hidden, held in pool(hold_the_gate):
        assert hidden >= held >= 0.1


def aliasing(groups):
    buffer, kept = new_buffer(groups, capacity=8), []
    for step in range(STEPS):
        drawn = buffer.advance()
        if drawn is not None:
            kept.append((drawn.samples, {name: tensor.clone() for name, tensor in drawn.samples.items()}))
        buffer.offer(batch_of(groups.rank, step, 8), group=0)
    buffer.close()
    return all(torch.equal(tensor, copy[name]) for now, copy in kept for name, tensor in now.items())


def test_check_11_what_was_handed_out_never_changes(pool):
    assert all(pool(aliasing))


def everything_once(groups, steps):
    buffer = new_buffer(groups, capacity=1000 * groups.ranks)
    for step in range(steps):
        buffer.advance()
        buffer.offer(batch_of(groups.rank, step, 3), group=0)
    buffer.advance()
    state = buffer.state()
    buffer.close()
    return state.layout.unpack(state.contents.rows)["sample_id"].tolist()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_check_12_every_hand_over_is_stored_once(pool, steps):
    for rank, held in enumerate(pool(everything_once, steps)):
        assert held == [identity_of(rank, step, place) for step in range(steps) for place in range(3)]


def newest_after_filling(groups):
    buffer, newest = new_buffer(groups, capacity=200 * groups.ranks, candidates=3), []
    for step in range(8):
        buffer.advance()
        names = buffer.layout.unpack(buffer.state().contents.rows)["sample_id"].tolist()
        newest.append(sum(step_of(name) == step - 1 for name in names))
        buffer.offer(batch_of(groups.rank, step, 80), group=0)
    buffer.close()
    return newest


def test_check_4_everything_is_offered_until_it_is_full_and_then_exactly_c(pool):
    for newest in pool(newest_after_filling):
        # Step 2 found room for 40 and put the others in place of some; steps 3 and 4 were handed over before
        # that was known.
        assert newest[:3] == [0, 80, 80]
        assert 40 <= newest[3] <= 80
        assert set(newest[4:]) <= {2, 3}  # 2 where two of them were given the same row
        assert max(newest[4:]) == 3


def capacities(groups, policy):
    buffer, sizes = new_buffer(groups, capacity=42, policy=policy), []
    for step in range(25):
        buffer.advance()
        sizes.append(len(buffer.state().contents.groups))
        buffer.offer(batch_of(groups.rank, step, 5), group=step // 6)
    buffer.close()
    return sizes


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
def test_check_3_a_rank_never_holds_more_than_its_share(pool, policy):
    shares = [42 // pool.ranks + (rank < 42 % pool.ranks) for rank in range(pool.ranks)]
    for share, sizes in zip(shares, pool(capacities, policy), strict=True):
        assert max(sizes) <= share
        if policy != "reservoir":
            assert sizes == sorted(sizes)
            assert sizes[-1] == share


def change_capacity(groups, policy):
    buffer, stored = new_buffer(groups, capacity=40, policy=policy), []
    for step in range(60):
        capacity = 80 if 20 <= step < 40 else 12 if step >= 40 else None
        drawn = buffer.advance(Round(step=step, representatives=6, capacity=capacity))
        buffer.offer(batch_of(groups.rank, step, 8), group=step // 20)
        stored.append(drawn.stored if drawn is not None else 0)
        if drawn is not None:
            assert_whole(drawn.samples)
    buffer.close()
    return stored


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
def test_capacity_changes_while_it_runs(pool, policy):
    results = pool(change_capacity, policy)
    assert all(stored == results[0] for stored in results)
    stored = results[0]
    assert max(stored[:21]) <= 40 < max(stored[21:41]) <= 80
    assert max(stored[41:]) <= 12
    assert stored[40] == 80 or policy == "reservoir"


@pytest.mark.parametrize("policy", ["quotas", "reservoir", "fifo"])
def test_random_delays_leave_every_mini_batch_bit_identical(pool, policy):
    settings = {"policy": policy, "sizes": SIZES, "distillation": 3}
    prompt = pool(_train_with, settings)
    assert prompt == pool(_train_with, settings | {"delay_s": 0.01})


def life_cycle(groups):
    first = train(groups, steps=6)
    buffer = new_buffer(groups)
    buffer.advance()
    buffer.offer(batch_of(groups.rank, 0, 8), group=0)
    buffer.advance()
    buffer.close()  # with work in flight
    return first == train(groups, steps=6)


def test_check_13_two_lives_one_after_the_other_and_closing_with_work_in_flight(pool):
    assert all(pool(life_cycle))


def drift(groups, work):
    buffer = new_buffer(groups)
    buffer.advance(Round(step=0, representatives=6, **{work: groups.rank}))
    try:
        buffer.advance()
    except RankError as error:
        return str(error)
    finally:
        buffer.abandon()
    return ""


@pytest.mark.parametrize("work", ["settings", "command", "generation", "branch", "distillation"])
def test_ranks_that_have_drifted_apart_say_so(pool, work):
    for said in pool(drift, work):
        assert ("drifted apart" in said and work in said) == (pool.ranks > 1)


def disagree(groups):
    with pytest.raises(SettingsError) as raised:
        new_buffer(groups, candidates=3 + groups.rank)
    return str(raised.value)


def test_ranks_with_other_settings_say_so(pool):
    if pool.ranks == 1:
        pytest.skip("a rank that is alone agrees with itself")
    for said in pool(disagree):
        assert "other settings than rank 0" in said


def disagree_about_room(groups):
    with pytest.raises(SettingsError) as raised:
        new_buffer(groups, device=placed(0, "device" if groups.rank else "host"))
    return str(raised.value)


def test_ranks_of_which_some_would_exchange_rows_elsewhere_say_so(pool):
    if pool.ranks == 1:
        pytest.skip("a rank that is alone agrees with itself")
    for said in pool(disagree_about_room):
        assert "other settings than rank 0" in said


def augment_alone(groups, place):
    """What comes back where nothing tells when the sums of a step are over, and what each exchange met."""
    exchange = WatchedRun(groups)
    buffer = new_buffer(groups, exchange=exchange, device=placed(groups.rank, place))
    seen = [buffer.augment(batch_of(groups.rank, step, 5))["sample_id"].tolist() for step in range(12)]
    before = exchange.begun
    state = buffer.state()  # as for a checkpoint, before the next step
    begun = exchange.begun - before
    drawn = state.layout.unpack(state.drawn.rows.numpy())["sample_id"].tolist()
    buffer.close()
    return seen, drawn, begun


def test_an_exchange_that_no_offer_has_begun_begins_with_the_next_step_or_what_asks_for_it(pool):
    here, there = (pool(augment_alone, place) for place in ("host", "device"))
    assert [each[:2] for each in there] == [each[:2] for each in here]
    assert [each[2] for each in there] == [int(pool.ranks > 1)] * pool.ranks


def reached(groups):
    return [groups.carries(torch.device(name)) for name in ("cpu", "cuda")]


def test_over_gloo_rows_of_a_gpu_pass_the_hosts(pool):
    assert pool(reached) == [[True, pool.ranks == 1]] * pool.ranks


def too_large(groups):
    with pytest.raises(SettingsError) as raised:
        new_buffer(groups, capacity="100 TiB")
    return str(raised.value)


def test_more_than_the_memory_of_the_machine_is_refused_on_every_rank(pool):
    for said in pool(too_large):
        assert "102400.00 GiB" in said


def fail_to_store(groups):
    buffer = new_buffer(groups)
    bad = samples([1])
    bad["image"][0, 0, 0] = float("nan")
    layout = RowLayout.of(bad)
    if groups.rank == 0:  # as with samples on a GPU, whose values are looked at in the background
        pending = Pending(lambda: layout.pack(bad), [0], [0])
        buffer.restore(replace(buffer.state(), pending=pending))
    try:
        buffer.advance()
        buffer.advance()
    except (RankError, SettingsError) as error:
        return str(error)
    finally:
        buffer.abandon()
    return ""


def test_a_rank_that_cannot_store_ends_all_ranks_at_once(pool):
    said = pool(fail_to_store)
    assert "NaN" in said[0]
    assert all("rank 0 could not store" in other for other in said[1:])


def test_alone_it_works_without_any_process_group():
    seen = train(ProcessGroups(0, 1))
    assert len(seen) == STEPS - 1
    assert set(seen[-1][3]) == {0}


def step_until_lost(groups, buffer, number):
    """What is said of rank 1, and at which step, after it has sent itself this signal at step 12."""
    for step in range(40):
        try:
            buffer.advance()
            if (groups.rank, step) == (1, 12):
                os.kill(os.getpid(), number)
            buffer.offer(batch_of(groups.rank, step, 8), group=0)
        except RankError as error:
            return str(error), step
    return "", 40


def get_stuck(groups, place):
    buffer = new_buffer(groups, device=placed(groups.rank, place))
    found = step_until_lost(groups, buffer, signal.SIGSTOP)
    buffer.abandon()
    return found


@pytest.mark.parametrize("place", ["host", "device"])
def test_a_rank_that_hangs_ends_the_others_by_the_time_out(tmp_path, place):
    ((said, step),) = on_ranks(2, tmp_path, get_stuck, place, dying=1, timeout_s=3.0)
    assert "rank 0 could not exchange" in said
    assert "longer than the time-out" in said
    assert 12 <= step <= 14


def lose_a_rank(groups, place):
    buffer = new_buffer(groups, device=placed(groups.rank, place))
    said, lost_at = step_until_lost(groups, buffer, signal.SIGKILL)
    state = buffer.state()
    buffer.abandon()
    with new_buffer(
        ProcessGroups(0, 1), capacity=20
    ) as survivor:  # with the rows that are left, and what was pending
        survivor.restore(replace(state, capacity=20))
        assert survivor.advance(Round(step=lost_at + 1, representatives=6)) is None
        survivor.offer(batch_of(0, lost_at + 1, 8), group=0)
        drawn = survivor.advance(Round(step=lost_at + 2, representatives=6))
        assert_whole(drawn.samples)
        return said, lost_at, set(drawn.owners.tolist()), drawn.stored


@pytest.mark.parametrize("place", ["host", "device"])
def test_check_13_when_a_rank_is_killed_the_other_learns_it_and_goes_on_with_what_it_holds(tmp_path, place):
    ((said, lost_at, owners, stored),) = on_ranks(2, tmp_path, lose_a_rank, place, dying=1)
    assert "rank 0 could not exchange" in said
    assert "died" in said
    assert 12 <= lost_at <= 14
    assert (owners, stored) == ({0}, 20)
