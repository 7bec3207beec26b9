"""How shards are dealt into mini-batches: every sample once an epoch, none alone, on any number of ranks."""

from __future__ import annotations

import itertools

import pytest
import torch

from rehearsal_kit.base.randomness import generator
from rehearsal_kit.data.task_loader import TaskLoader, dealt_out
from rehearsal_kit.data.training_shard import TrainingShard

EPOCHS = 2


def loader_of(size, largest, batch, **settings):
    return TaskLoader(
        task=0,
        tasks=[0],
        shard=TrainingShard({"sample_id": torch.arange(size)}),
        largest=largest,
        epochs=EPOCHS,
        batch=batch,
        key=(3, 0),
        **settings,
    )


def taken(loader):
    """The mini-batches from the first to the last."""
    batches = []
    while not loader.done:
        assert loader.steps > loader.taken
        batches.append(loader.next()["sample_id"].tolist())
    assert loader.steps == loader.taken == len(batches)
    return batches


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16])
def test_every_sample_comes_once_an_epoch_none_alone_and_all_ranks_take_equally_many_steps(batch):
    for largest in range(1, 40):
        steps = loader_of(largest, largest, batch).steps
        for size in range(max(0, largest - 3), largest + 1):
            batches = taken(loader_of(size, largest, batch))
            assert len(batches) == steps
            assert sorted(itertools.chain(*batches)) == sorted([*range(size)] * EPOCHS)
            assert batch == 1 or size == 1 or all(len(each) != 1 for each in batches)
            assert all(len(each) <= batch + 1 for each in batches)


@pytest.mark.parametrize("least", [0, 1, 7, 8, 9, 30])
def test_a_task_is_passed_again_until_it_has_taken_its_least_steps(least):
    loader = loader_of(14, 14, 4, least_steps=least)
    batches = taken(loader)
    passes = max(EPOCHS, -(-least // loader.steps_per_epoch))
    assert sorted(itertools.chain(*batches)) == sorted([*range(14)] * passes)


def test_one_that_is_passed_again_goes_on_from_a_checkpoint_and_can_be_finished():
    loader, again = (loader_of(14, 14, 4, least_steps=30) for _ in range(2))
    before = [loader.next()["sample_id"].tolist() for _ in range(19)]
    assert loader.epoch > EPOCHS
    again.go_on(loader.to_plain(ranks=1))
    assert before + taken_from(again) == taken(loader_of(14, 14, 4, least_steps=30))
    loader.finish()
    assert loader.done
    once_more = loader_of(14, 14, 4, least_steps=30)
    once_more.go_on(loader.to_plain(ranks=1))
    assert once_more.done
    earlier = {name: value for name, value in loader.to_plain(ranks=1).items() if name != "least_steps"}
    once_more.go_on(earlier)
    assert once_more.done


def test_every_epoch_has_an_order_of_its_own_wherever_a_loader_comes_from():
    orders = [generator(3, "epoch", 0, 0, epoch).permutation(14).tolist() for epoch in range(EPOCHS)]
    batches = taken(loader_of(14, 14, 5))
    assert [[*itertools.chain(*batches[:3])], [*itertools.chain(*batches[3:])]] == orders
    loader = loader_of(14, 14, 5)
    loader.next()
    said = loader.to_plain(ranks=1)
    for _ in range(3):
        loader.next()
    assert loader.epoch == 1
    loader.go_on(said)  # back in the first epoch
    assert loader.next()["sample_id"].tolist() == orders[0][5:10]
    loader.again(7)
    assert loader.next()["sample_id"].tolist() == orders[0][:5]
    rest = TrainingShard({"sample_id": torch.arange(100, 109)})
    loader.go_on_with(rest, longest=9, dealings=[(2, 5), (1, 0)])
    left = [loader.next()["sample_id"].tolist() for _ in range(2)]
    assert left == [[100, 101, 102, 103, 104], [105, 106, 107, 108]]
    assert loader.next()["sample_id"].tolist() == orders[1][:5]


def taken_from(loader):
    """Those that are left up to the end."""
    batches = []
    while not loader.done:
        batches.append(loader.next()["sample_id"].tolist())
    return batches


@pytest.mark.parametrize(("largest", "batch"), [(32, 16), (40, 16), (35, 16), (96, 8)])
def test_where_no_sample_is_alone_the_dealing_is_that_of_even_slices(largest, batch):
    loader = loader_of(largest, largest, batch)
    order = loader.left()
    slices = [part.tolist() for part in order.split(batch)]
    assert taken(loader)[: len(slices)] == slices


def test_another_size_of_mini_batches_in_the_middle_loses_and_repeats_nothing():
    for size, first, then, when in itertools.product((17, 18, 33), (1, 4, 16), (1, 3, 16), (1, 2, 3)):
        loader = loader_of(size, 33, first)
        batches = []
        for number in itertools.count():
            if loader.epoch:
                break
            if number == when:
                loader.batch = then
            batches += loader.next()["sample_id"].tolist()
        assert sorted(batches) == [*range(size)]


def test_what_is_left_is_dealt_out_without_a_sample_alone():
    for count, ranks in itertools.product(range(20), (1, 2, 3, 5)):
        parts = dealt_out(count, ranks=ranks)
        assert len(parts) == ranks
        assert sorted(torch.cat(parts).tolist()) == [*range(count)]
        assert count == 1 or all(len(part) != 1 for part in parts)
