"""The loss of each representative, which loss-aware removal asks a step for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.strategies.choice import OURS
from rehearsal_kit.learning.strategies.replay import ER

TRAINING = Training(precision="float32", average=0.9, plastic_average=0.5)


def samples(count, *, seed):
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 6, generator=random),
        "label": torch.randint(0, 3, (count,), generator=random),
        IDENTITY: torch.arange(count),
    }


def learner():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = torch.nn.Linear(6, 3)
    made = Learner(network, TRAINING, device="cpu", groups=ProcessGroups(0, 1))
    made.know(made.meet(samples(2, seed=0), "x"))
    return made


def batch_for(strategy, *, asks_losses):
    new, again = samples(8, seed=1), samples(5, seed=2)
    return MiniBatch(new, again if strategy.replays else {}, {}, asks_losses=asks_losses)


REPLAYING = [kind for kind in OURS if kind.replays and not kind.distils]


@pytest.mark.parametrize("kind", REPLAYING, ids=lambda kind: kind.__name__)
def test_they_are_the_losses_of_the_network_before_the_step_whatever_the_strategy(kind):
    trained, plain = learner(), learner()
    batch = batch_for(kind(), asks_losses=True)
    logits = trained.predict(batch.replayed["x"])["label"]
    stepped = trained.step(batch, strategy=kind(), seed=3)
    expected = functional.cross_entropy(logits, batch.replayed["label"], reduction="none")
    torch.testing.assert_close(stepped.replayed, expected)
    assert not stepped.replayed.requires_grad
    # And the step is the same, bit for bit, as without being asked.
    unasked = plain.step(batch_for(kind(), asks_losses=False), strategy=kind(), seed=3)
    assert unasked.replayed is None
    assert plain.state.fingerprint() == trained.state.fingerprint()


@pytest.mark.parametrize("kind", OURS)
def test_a_loss_is_not_asked_about_no_sample(kind):
    def knows_no_empty_part(outputs, targets):
        assert len(targets["label"])
        return functional.cross_entropy(outputs["label"], targets["label"], reduction="none")

    batch = replace(batch_for(kind(), asks_losses=True), replayed=samples(0, seed=2))
    stepped = learner().step(batch, strategy=kind(loss=knows_no_empty_part), seed=3)
    assert (stepped.error, stepped.replayed) == ("", None)


def in_place(outputs, targets):
    """As losses of others may do."""
    losses = functional.cross_entropy(outputs["label"], targets["label"].clone(), reduction="none")
    targets["label"].zero_()
    return losses


def test_a_loss_that_works_in_place_on_its_targets_is_asked_on_copies():
    trained, plain = learner(), learner()
    strategy = ER(loss=in_place, balance="equal")
    stepped = trained.step(batch_for(strategy, asks_losses=True), strategy=strategy, seed=3)
    plain.step(batch_for(strategy, asks_losses=False), strategy=strategy, seed=3)
    assert len(stepped.replayed) == 5
    assert plain.state.fingerprint() == trained.state.fingerprint()


def test_a_strategy_that_replays_nothing_says_nothing():
    strategy = next(kind for kind in OURS if not kind.replays and not kind.distils)()
    stepped = learner().step(batch_for(strategy, asks_losses=True), strategy=strategy, seed=3)
    assert not stepped.trouble
    assert stepped.replayed is None
