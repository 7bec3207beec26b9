"""The averages of the weights: their formula, what uses them, that they are kept, gone back to, the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.utils.checkpoint
from ranks import on_ranks

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.strategies.choice import require_suited
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import CLSER, MeanER
from rehearsal_kit.learning.weight_average import WeightAverage

DECAY, QUICKER, STEPS = 0.6, 0.3, 20


class Normalised(torch.nn.Module):
    """With running means, and a counter of whole numbers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
            self.steps = torch.nn.Parameter(torch.ones(2))  # as the average might call what it counts

    def forward(self, vectors):
        return {"y": self.steps * self.layers(vectors)}


def batch_of(step, rank=0):
    random = torch.Generator().manual_seed(100 * rank + step)
    x, y = torch.randn(6, 4, generator=random), torch.randn(6, 2, generator=random)
    return MiniBatch({"x": x + 1, "y": y}, {}, {})


def learner_of(*, average=DECAY, plastic_average=None, groups=None):
    training = Training(
        learning_rate=0.05, precision="float32", average=average, plastic_average=plastic_average
    )
    learner = Learner(Normalised(), training, device="cpu", groups=groups or ProcessGroups(0, 1))
    learner.know(learner.meet(batch_of(0).new, "x"))
    return learner


def trained(learner, steps, rank=0):
    """The weights before the first of these steps and after each, in double precision."""
    seen = [state_of(learner)]
    for step in steps:
        assert not learner.step(batch_of(step, rank), strategy=Incremental()).trouble
        seen.append(state_of(learner))
    return seen


def state_of(learner):
    return {name: tensor.detach().double() for name, tensor in learner.network.state_dict().items()}


def averaged(seen, decay_in_the_end=DECAY):
    """The formula, written out: a <- d a + (1 - d) w, d growing to the decay."""
    average = dict(seen[0])
    for taken, weights in enumerate(seen[1:]):
        decay = min(decay_in_the_end, (1 + taken) / (10 + taken))
        for name, new in weights.items():
            average[name] = decay * average[name] + (1 - decay) * new
    return average


def test_they_are_those_of_the_formula_and_counters_are_the_newest():
    learner = learner_of(plastic_average=QUICKER)
    seen = trained(learner, range(STEPS))
    found = {DECAY: learner.state.average, QUICKER: learner.state.plastic_average}
    for decay, average in found.items():
        expected = averaged(seen, decay)
        for name, tensor in average.items():
            if name.endswith("num_batches_tracked"):
                assert tensor == STEPS
            else:
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
                assert (expected[name] - seen[-1][name]).abs().max() > 1e-3
    assert (found[DECAY]["layers.1.weight"] - found[QUICKER]["layers.1.weight"]).abs().max() > 1e-3


def test_the_quicker_one_predicts_nothing_and_is_not_there_unless_it_is_asked_for():
    both, alone = learner_of(plastic_average=QUICKER), learner_of()
    for learner in (both, alone):
        trained(learner, range(5))
    inputs = batch_of(99).new["x"]
    assert torch.equal(both.predict(inputs)["y"], alone.predict(inputs)["y"])
    assert alone.state.plastic_average is None
    # As in checkpoints of versions that knew of one average alone.
    only = both.state.tensors().keys() - alone.state.tensors().keys()
    assert {name[: len("now.plastic.")] for name in only} == {"now.plastic."}
    with both.state.untrained():
        assert both.state.plastic_average is None


def test_it_predicts_and_is_what_is_stored_while_training_is_that_without_it():
    learner, plain = learner_of(), learner_of(average=None)
    assert trained(learner, range(STEPS))[-1].keys() == trained(plain, range(STEPS))[-1].keys()
    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(tensor, learner.network.state_dict()[name])
    inputs = batch_of(99).new["x"]
    stored = Normalised().eval()
    stored.load_state_dict(learner.state.weights())
    with torch.no_grad():
        torch.testing.assert_close(learner.predict(inputs)["y"], stored(inputs)["y"])
    assert not torch.equal(learner.predict(inputs)["y"], plain.predict(inputs)["y"])
    with learner.state.untrained(), plain.state.untrained():
        assert torch.equal(learner.predict(inputs)["y"], plain.predict(inputs)["y"])


@pytest.mark.parametrize("plastic_average", [None, QUICKER])
def test_it_goes_on_from_a_checkpoint_and_back_to_where_a_task_began_bit_for_bit(plastic_average):
    learner, other, again, untrained = (learner_of(plastic_average=plastic_average) for _ in range(4))
    trained(learner, range(5))
    learner.state.keep()
    trained(learner, range(5, 9))
    kept = learner.state.tensors()
    trained(learner, range(9, 14))
    trained(other, range(2))
    other.state.adopt(kept)
    trained(other, range(9, 14))
    assert other.state.fingerprint() == learner.state.fingerprint()
    for each in (learner, other):
        each.state.go_back()
    trained(again, range(5))
    assert learner.state.fingerprint() == other.state.fingerprint() == again.state.fingerprint()
    learner.state.restart()
    assert learner.state.fingerprint() == untrained.state.fingerprint()


class Shared(torch.nn.Module):
    """One module under two names, with a running mean, and one whose weights are those of another."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
            self.again, self.norm_again = self.first, self.norm
            self.tied, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
            self.tied.weight = self.first.weight

    def forward(self, vectors):
        hidden = self.norm_again(self.again(torch.tanh(self.norm(self.first(vectors)))))
        return {"y": self.last(self.tied(hidden))}


class Short(torch.nn.Module):
    """Weights of sixteen bits."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer = torch.nn.Linear(4, 2).to(torch.bfloat16)
            # Named as a key of what is stored beside the weights.
            self.average = torch.nn.Linear(2, 2)

    def forward(self, vectors):
        return {"y": self.average(self.layer(vectors.to(torch.bfloat16)).float())}


@pytest.mark.parametrize("kind", [Shared, Short, Normalised])
def test_predicting_changes_nothing_whatever_the_network_shares(kind):
    learners = {}
    for predicting in (False, True):
        training = Training(learning_rate=0.05, precision="float32", average=DECAY)
        learner = Learner(kind(), training, device="cpu", groups=ProcessGroups(0, 1))
        learner.know(learner.meet(batch_of(0).new, "x"))
        for step in range(6):
            assert not learner.step(batch_of(step), strategy=Incremental()).trouble
            if predicting:
                learner.predict(batch_of(99).new["x"])
                stored = kind().eval()
                stored.load_state_dict(learner.state.weights())
                with torch.no_grad():
                    found = stored(batch_of(99).new["x"])["y"]
                torch.testing.assert_close(learner.predict(batch_of(99).new["x"])["y"], found)
        learners[predicting] = learner
    assert learners[True].state.fingerprint() == learners[False].state.fingerprint()
    names = [name for name, _ in learners[True].network.named_parameters()]
    assert names == [name for name, _ in kind().named_parameters()]
    assert all(isinstance(p, torch.nn.Parameter) for p in learners[True].network.parameters())


def test_the_fingerprint_has_every_weight_and_the_averages():
    learner = learner_of(plastic_average=QUICKER)
    trained(learner, range(2))
    for which in ("now.average.steps", "now.plastic.steps"):
        before, tensors = learner.state.fingerprint(), learner.state.tensors()
        learner.state.adopt({**tensors, which: tensors[which] + 1})
        assert learner.state.fingerprint() != before
    short = Learner(Short(), Training(average=DECAY), device="cpu", groups=ProcessGroups(0, 1))
    for each, name in ((learner, "steps"), (short, "average.weight")):
        before = each.state.fingerprint()
        with torch.no_grad():
            dict(each.network.named_parameters())[name].add_(1)
        assert each.state.fingerprint() != before


class Recomputing(Normalised):
    """Makes what is between again on the way back."""

    def forward(self, vectors):
        hidden = torch.utils.checkpoint.checkpoint(self.layers, vectors, use_reentrant=False)
        return {"y": self.steps * hidden}


def test_a_network_that_computes_again_on_the_way_back_is_held_to_its_average():
    training = Training(precision="float32", average=DECAY)
    learner = Learner(Recomputing(), training, device="cpu", groups=ProcessGroups(0, 1))
    learner.know(learner.meet(batch_of(0).new, "x"))
    for step in range(3):
        batch = replace(batch_of(step), replayed=batch_of(step + 50).new)
        stepped = learner.step(batch, strategy=MeanER())
        assert not stepped.trouble, stepped.error
    assert stepped.terms["consistency"] > 0


def test_short_weights_are_averaged_in_single_precision():
    """In bfloat16 one thousandth of a step is nothing."""
    weights = {"w": torch.ones(3, dtype=torch.bfloat16)}
    average = WeightAverage(weights, decay=0.999)
    for _ in range(20_000):
        average.follow({"w": torch.zeros(3, dtype=torch.bfloat16)})
    assert average.weights["w"].dtype == torch.float32
    assert float(average.weights["w"].max()) < 1e-3


def on_this_rank(groups):
    learner = learner_of(groups=groups, plastic_average=QUICKER)
    trained(learner, range(STEPS), rank=groups.rank)
    return learner.state.fingerprint(), learner.predict(batch_of(99).new["x"])["y"].numpy()


def test_two_ranks_have_the_same(tmp_path):
    first, second = on_ranks(2, tmp_path, on_this_rank)
    assert first[0] == second[0]
    assert (first[1] == second[1]).all()


def test_what_is_held_to_an_average_is_refused_without_one():
    require_suited(MeanER(), Rehearsal(), Training(average=0.99))
    with pytest.raises(SettingsError, match=r"MeanER holds .* Training\(average=0.99\)"):
        require_suited(MeanER(), Rehearsal(), Training())
    require_suited(CLSER(), Rehearsal(), Training(average=0.99, plastic_average=0.9))
    for training, words in ((Training(), "None"), (Training(average=0.99), "0.99")):
        with pytest.raises(SettingsError, match=rf"average is {words} and plastic_average None; begin the"):
            require_suited(CLSER(), Rehearsal(), training)


@pytest.mark.parametrize(
    ("average", "plastic_average", "words"),
    [
        (None, 0.9, "plastic_average is 0.9, but average is None"),
        (0.9, 0.9, "plastic_average is 0.9 and average is 0.9; the second average must be the quicker one"),
        (0.9, 0.99, "plastic_average is 0.99 and average is 0.9"),
        (0.9, -0.1, "plastic_average is -0.1; it must be a finite number from 0"),
        (0.9, "quick", "plastic_average is 'quick'"),
    ],
)
def test_a_second_average_that_is_not_quicker_than_the_first_is_refused(average, plastic_average, words):
    with pytest.raises(SettingsError, match=words):
        Training(average=average, plastic_average=plastic_average)


@pytest.mark.parametrize("average", [1.0, -0.1, "much", True])
def test_a_decay_that_averages_nothing_is_refused(average):
    with pytest.raises(SettingsError, match="average is"):
        Training(average=average)
