"""The learner: states that come back bit for bit, schedules, clipping, precision, batch norm, bad losses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import on_ranks

from rehearsal_kit.base.errors import SettingsError, TaskError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.stored_outputs import with_outputs
from rehearsal_kit.learning.strategies.dark import DER
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER

CLASSES = 3
BY_ITSELF = ProcessGroups(0, 1)


class Net(torch.nn.Module):
    """Six numbers in, logits out; with batch norm before everything, and dropout, if wanted."""

    def __init__(self, *, norm=False, dropout=0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.norm = torch.nn.BatchNorm1d(6) if norm else torch.nn.Identity()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, CLASSES)
            )

    def forward(self, vectors):
        return {"label": self.layers(self.norm(vectors))}


class Bare(Net):
    """One tensor instead of a dictionary."""

    def forward(self, vectors):
        return super().forward(vectors)["label"]


def samples(count, *, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 6, generator=random),
        "label": torch.randint(0, CLASSES, (count,), generator=random),
        IDENTITY: torch.arange(count),
    }


def new_only(count=8, *, seed=0):
    return MiniBatch(samples(count, seed=seed), {}, {})


def learner_of(network=None, *, groups=BY_ITSELF, **training):
    settings = Training(**{"precision": "float32", **training})
    learner = Learner(network or Net(), settings, device="cpu", groups=groups)
    learner.know(learner.meet(samples(2), "x"))
    return learner


def train(learner, steps, *, seed=0):
    for step in range(steps):
        batch = MiniBatch(samples(8, seed=seed + step), samples(4, seed=seed + step + 90), {})
        assert not learner.step(batch, strategy=ER(), seed=step).trouble
    return learner


def state_of(learner):
    return {name: tensor.clone() for name, tensor in learner.state.weights().items()}


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


OPTIMIZERS = ("adam", "adamw", "sgd")


# States --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_restart_is_a_new_learner_bit_for_bit(optimizer):
    settings = {"optimizer": optimizer, "learning_rate": 0.05, "weight_decay": 0.01}
    fresh = train(learner_of(Net(norm=True, dropout=0.3), **settings), 3)
    used = train(learner_of(Net(norm=True, dropout=0.3), **settings), 5, seed=50)
    assert not same(state_of(used), state_of(fresh))
    used.state.restart()
    assert same(state_of(used), state_of(learner_of(Net(norm=True))))
    assert same(state_of(train(used, 3)), state_of(fresh))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_back_undoes_every_step_since_bit_for_bit_and_more_than_once(optimizer):
    learner = train(learner_of(Net(norm=True), optimizer=optimizer, learning_rate=0.05), 3)
    learner.state.keep()
    kept, after = state_of(learner), state_of(train(learner, 4, seed=20))
    assert not same(kept, after)
    for _ in range(2):
        learner.state.go_back()
        assert same(state_of(learner), kept)
        assert same(state_of(train(learner, 4, seed=20)), after)


def test_the_untrained_network_is_there_for_a_block_only_even_if_it_fails():
    learner = train(learner_of(Net(norm=True)), 3)
    trained, initial = state_of(learner), state_of(learner_of(Net(norm=True)))
    seen = {}

    def look_and_fail():
        with learner.state.untrained():
            seen.update(state_of(learner))
            raise KeyError

    with pytest.raises(KeyError):
        look_and_fail()
    assert same(seen, initial)
    assert same(state_of(learner), trained)


def test_predictions_and_scores_change_no_state():
    learner = train(learner_of(Net(norm=True, dropout=0.5)), 2)
    other = train(learner_of(Net(norm=True, dropout=0.5)), 2)
    before, random = state_of(learner), torch.get_rng_state()
    inputs = samples(20, seed=7)["x"]
    first = learner.predict(inputs)["label"]
    scores = learner.metrics(iter([samples(20, seed=7), samples(3, seed=8)]))
    meeting = learner.meet(samples(2), "x")
    assert torch.equal(learner.predict(inputs)["label"], first)
    assert meeting == learner.signature
    assert 0 <= scores.errors["label"] <= 1
    assert same(state_of(learner), before)
    assert same(state_of(train(learner, 3, seed=30)), state_of(train(other, 3, seed=30)))
    assert torch.equal(torch.get_rng_state(), random)


def test_dropout_depends_on_seed_and_step_and_on_nothing_else():
    def after(seed, step=0, disturbed=False):
        learner = learner_of(Net(dropout=0.5))
        if disturbed:
            torch.rand(17)
        learner.step(new_only(), strategy=Incremental(), seed=seed, step=step)
        return state_of(learner)

    assert same(after(1), after(1, disturbed=True))
    assert not same(after(1), after(2))
    assert not same(after(1), after(1, step=1))


# Learning rate, clipping, precision ----------------------------------------------------------------------


def warmed(step, steps, share):
    return min(1.0, (step + 1) / (share * steps)) if share else 1.0


FORMULAS = {
    "constant": lambda step, steps, epoch: 1.0,
    "cosine": lambda step, steps, epoch: (1 + math.cos(math.pi * step / steps)) / 2,
    "cyclic": lambda step, steps, epoch: float(
        np.interp(step % epoch, [0, epoch / 2, epoch], [0.125, 1, 0.125])
    ),
}


@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("schedule", FORMULAS)
@pytest.mark.parametrize(("epochs", "epoch"), [(3, 8), (2, 7), (4, 1), (1, 1)])
def test_the_schedule_is_its_formula(schedule, warmup, epochs, epoch):
    training, steps = Training(schedule=schedule, warmup=warmup), epochs * epoch
    factors = [training.factor(step, steps=steps, steps_per_epoch=epoch) for step in range(steps)]
    formula = FORMULAS[schedule]
    assert factors == pytest.approx(
        [formula(step, steps, epoch) * warmed(step, steps, warmup) for step in range(steps)]
    )
    assert 0 < max(factors) <= 1
    assert min(factors) >= 0


def test_a_whole_cycle_reaches_the_learning_rate_once_an_epoch():
    factors = [Training(schedule="cyclic").factor(s, steps=16, steps_per_epoch=8) for s in range(16)]
    assert factors[0] == factors[8] == 0.125
    assert [step for step, factor in enumerate(factors) if factor == 1] == [4, 12]


def change_of(learner, batch, **step):
    before = torch.nn.utils.parameters_to_vector(learner.network.parameters()).detach().clone()
    assert not learner.step(batch, strategy=Incremental(), **step).trouble
    return torch.nn.utils.parameters_to_vector(learner.network.parameters()).detach() - before


def test_factor_and_steered_learning_rate_scale_the_step():
    whole = change_of(learner_of(optimizer="sgd", learning_rate=0.4), new_only())
    quarter = change_of(learner_of(optimizer="sgd", learning_rate=0.4), new_only(), factor=0.25)
    steered = learner_of(optimizer="sgd", learning_rate=0.1)
    steered.training = replace(steered.training, learning_rate=0.4)
    torch.testing.assert_close(4 * quarter, whole, rtol=1e-4, atol=1e-6)
    assert torch.equal(change_of(steered, new_only()), whole)


def test_long_gradients_are_shortened_and_short_ones_left_alone():
    free = change_of(learner_of(optimizer="sgd", learning_rate=1.0), new_only())
    norm = float(free.norm())
    short = change_of(learner_of(optimizer="sgd", learning_rate=1.0, clip_norm=norm / 4), new_only())
    long = change_of(learner_of(optimizer="sgd", learning_rate=1.0, clip_norm=norm * 2), new_only())
    torch.testing.assert_close(short, free / 4, rtol=1e-4, atol=1e-6)
    assert torch.equal(long, free)


def test_bfloat16_is_used_and_leaves_as_float32():
    batch, losses, outputs = new_only(64), {}, {}
    for precision in ("float32", "auto", "bfloat16"):
        learner = learner_of(precision=precision)
        stepped = learner.step(batch, strategy=Incremental())
        losses[precision], outputs[precision] = stepped.loss, stepped.outputs["label"]
        assert stepped.outputs["label"].dtype == learner.predict(batch.new["x"])["label"].dtype
        assert {tensor.dtype for tensor in learner.state.weights().values()} == {torch.float32}
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float32}
    assert losses["auto"] == losses["float32"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert torch.equal(outputs["bfloat16"], outputs["bfloat16"].bfloat16().float())


def test_outputs_are_those_of_the_network_before_the_step():
    learner = learner_of(learning_rate=1.0)
    before = learner.predict(samples(8)["x"])["label"]
    stepped = learner.step(MiniBatch(samples(8), samples(3, seed=1), {}), strategy=ER())
    torch.testing.assert_close(stepped.outputs["label"], before)
    assert not stepped.outputs["label"].requires_grad
    assert not torch.allclose(learner.predict(samples(8)["x"])["label"], before, atol=0.1)


# What the network may be ---------------------------------------------------------------------------------


def test_a_bare_tensor_is_the_output_for_the_only_target():
    named, bare = train(learner_of(Net()), 3), train(learner_of(Bare()), 3)
    assert same(state_of(named), state_of(bare))
    assert list(bare.predict(samples(2)["x"])) == ["label"]


def test_a_bare_tensor_for_two_targets_is_refused_with_the_fix():
    two = samples(4) | {"other": torch.zeros(4)}
    learner = Learner(Bare(), Training(), device="cpu", groups=BY_ITSELF)
    with pytest.raises(SettingsError, match=r"returned Tensor for the targets label, other.*dictionary"):
        learner.meet(two, "x")


class Frozen(Net):
    """The first layer is not trained, and one more is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)
        self.unused = torch.nn.Linear(2, 2)


def test_frozen_and_unused_parameters_stay_as_they_are():
    learner = learner_of(Frozen())
    before = state_of(learner)
    after = state_of(train(learner, 3))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"layers.3.weight", "layers.3.bias"}


def task(**fields):
    return {"x": torch.zeros(4, 6), "label": torch.tensor([0, 1, 2, 2]), **fields}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logits": torch.zeros(1, 3)}, "outputs are logits, the targets label, image"),
        ({"label": torch.zeros(1)}, r"'label' has shape \(\) for integer targets"),
        ({"label": torch.zeros(1, 3, 2)}, r"'label' has shape \(3, 2\) for integer targets"),
        ({"image": torch.zeros(1, 1, 5, 5)}, r"'image' has shape \(1, 5, 5\), the target \(1, 4, 4\)"),
        ({"image": torch.zeros(1, 4, 4)}, r"'image' has shape \(4, 4\), the target \(1, 4, 4\)"),
    ],
)
def test_outputs_that_do_not_meet_the_targets_are_refused(outputs, words):
    with pytest.raises(TaskError, match=words):
        Signature.of(task(image=torch.zeros(4, 1, 4, 4)), outputs, inputs="x")


@pytest.mark.parametrize(
    ("came", "words"),
    [
        (task(label=torch.tensor([0, 1, 3, 2])), r"reaches from 0 to 3, but .* 3 classes apart, 0 to 2"),
        (task(label=torch.tensor([0, -1, 1, 2])), "reaches from -1 to 2"),
        (task(x=torch.zeros(4, 7)), r"x \(7,\) float32.*those of the first task.*x \(6,\) float32"),
        (task(x=torch.zeros(4, 6).double()), r"x \(6,\) float64.*x \(6,\) float32"),
        (task(label=torch.zeros(4, dtype=torch.int32)), r"label \(\) int32.*label \(\) int64"),
        (task(more=torch.zeros(4)), r"more \(\) float32"),
        ({"x": torch.zeros(4, 6)}, r"its samples are x \(6,\) float32, those"),
        ({"x": torch.zeros(4, 6), "class": torch.zeros(4, dtype=torch.int64)}, r"class \(\) int64"),
    ],
)
def test_samples_unlike_those_of_the_first_task_are_refused(came, words):
    signature = Signature.of(task(), {"label": torch.zeros(1, CLASSES)}, inputs="x")
    signature.require(task())
    signature.require({name: tensor[:0] for name, tensor in task().items()})
    signature.require(dict(reversed([*task().items(), (IDENTITY, torch.arange(4))])))
    with pytest.raises(TaskError, match=words):
        signature.require(came)


# Bad losses ----------------------------------------------------------------------------------------------


def optimizer_of(learner):
    state = learner.state.optimizer.state_dict()["state"]
    return {
        f"{n} {name}": torch.as_tensor(value).clone() for n, s in state.items() for name, value in s.items()
    }


def spoilt(count, value, *, seed=0):
    bad = samples(count, seed=seed)
    bad["x"][1, 2] = value
    return bad


def as_sum(outputs, targets):
    return outputs["label"].square().sum(dim=1)


def with_steep_root(outputs, targets):
    return (0 * outputs["label"]).abs().sqrt().sum(dim=1)


@pytest.mark.parametrize(
    ("strategy", "value", "words"),
    [
        (Incremental(), float("nan"), "the loss became NaN"),
        (Incremental(loss=with_steep_root), 0.0, "the gradient became infinite or NaN"),
        (Incremental(loss=lambda o, t: as_sum(o, t) * 1e38 * 10), 1.0, "the loss became infinite"),
    ],
)
def test_a_step_whose_loss_or_gradient_is_not_finite_is_not_taken(strategy, value, words):
    learner, other = train(learner_of(), 2), train(learner_of(), 2)
    before, optimizer = state_of(learner), optimizer_of(learner)
    stepped = learner.step(MiniBatch(spoilt(8, value), {}, {}), strategy=strategy)
    assert stepped.trouble == words
    assert stepped.guilty == ("loss" in words)
    assert same(state_of(learner), before)
    assert same(optimizer_of(learner), optimizer)
    assert same(state_of(train(learner, 2, seed=9)), state_of(train(other, 2, seed=9)))


def test_going_back_also_mends_batch_norm_that_saw_nan():
    learner, other = train(learner_of(Net(norm=True)), 2), train(learner_of(Net(norm=True)), 2)
    learner.state.keep()
    before = state_of(learner)
    assert learner.step(MiniBatch(spoilt(8, float("nan")), {}, {}), strategy=Incremental()).trouble
    learner.state.go_back()
    assert same(state_of(learner), before)
    assert same(state_of(train(learner, 2, seed=9)), state_of(train(other, 2, seed=9)))


# Two ranks -----------------------------------------------------------------------------------------------


def on_this_rank(groups):
    """Everything that is to be asked of two ranks."""

    def plain(state):
        return {name: tensor.numpy().copy() for name, tensor in state.items()}

    own = samples(5 + 3 * groups.rank, seed=groups.rank)
    found = {}

    learner = learner_of(Net(norm=True), groups=groups)
    learner.step(MiniBatch(own, {}, {}), strategy=Incremental())
    found["batch norm, one step"] = plain(learner.state.weights())
    for step in range(4):
        more = samples(3 + step, seed=10 * step + groups.rank)
        learner.step(MiniBatch(more, {}, {}), strategy=Incremental())
    found["batch norm, five steps"] = plain(learner.state.weights())

    for norm in (None, 0.01):
        learner = learner_of(groups=groups, optimizer="sgd", learning_rate=1.0, clip_norm=norm)
        found["clipped", norm] = change_of(learner, MiniBatch(own, {}, {})).numpy()

    learner = train(learner_of(groups=groups), 2, seed=100 * groups.rank)
    before, optimizer = state_of(learner), optimizer_of(learner)
    bad = spoilt(4, float("nan")) if groups.rank == 1 else own
    stepped = learner.step(MiniBatch(bad, {}, {}), strategy=Incremental())
    found["nan"] = stepped.trouble, stepped.guilty
    kept = with_outputs(own, {"label": torch.zeros(len(own["x"]), CLASSES)}, version=0)
    if groups.rank == 0:
        kept["outputs.label"][0] = math.inf
    stepped = learner.step(MiniBatch(own, {}, kept), strategy=DER())
    found["infinite"] = stepped.trouble, stepped.guilty
    found["nothing changed"] = same(state_of(learner), before) and same(optimizer_of(learner), optimizer)
    found["after"] = plain(train(learner, 2, seed=100 * groups.rank).state.weights())
    other = train(learner_of(groups=groups), 2, seed=100 * groups.rank)
    found["never bad"] = plain(train(other, 2, seed=100 * groups.rank).state.weights())

    parts = [samples(9, seed=groups.rank), samples(4 * groups.rank, seed=8)]
    scores = learner.metrics(iter(parts))
    found["quality"] = (
        dict(scores.errors),
        learner.predict(torch.cat([part["x"] for part in parts]))["label"].numpy(),
    )
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two ranks make of all of it: they are started once."""
    return on_ranks(2, tmp_path_factory.mktemp("both"), on_this_rank)


def test_batch_norm_of_two_ranks_is_the_mean_of_theirs(both):
    parts = [samples(5 + 3 * rank, seed=rank)["x"].double() for rank in range(2)]
    mean = 0.1 * torch.stack([part.mean(dim=0) for part in parts]).mean(dim=0)
    variance = 0.9 + 0.1 * torch.stack([part.var(dim=0) for part in parts]).mean(dim=0)
    for found in both:
        state = found["batch norm, one step"]
        np.testing.assert_allclose(state["norm.running_mean"], mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(state["norm.running_var"], variance, rtol=1e-5)


@pytest.mark.parametrize("when", ["batch norm, one step", "batch norm, five steps", "after"])
def test_two_ranks_with_different_samples_hold_the_same_bits(both, when):
    first, second = (found[when] for found in both)
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_gradient_of_all_ranks_is_clipped_not_that_of_each(both):
    network = copy.deepcopy(Net()).double()
    parts = [samples(5 + 3 * rank, seed=rank) for rank in range(2)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss = torch.nn.functional.cross_entropy(network(whole["x"].double())["label"], whole["label"])
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
    for found in both:
        np.testing.assert_allclose(found["clipped", None], -gradient, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            found["clipped", 0.01], -0.01 * gradient / gradient.norm(), rtol=1e-3, atol=1e-7
        )


def test_nan_on_one_rank_stops_the_step_on_all_and_only_that_rank_is_guilty(both):
    assert [found["nan"] for found in both] == [("the loss became NaN", False), ("the loss became NaN", True)]
    assert [found["infinite"] for found in both] == [
        ("the loss became infinite", True),
        ("the loss became infinite", False),
    ]
    assert all(found["nothing changed"] for found in both)
    for found in both:
        assert all(np.array_equal(found["after"][n], value) for n, value in found["never bad"].items())


def test_scores_are_over_the_samples_of_all_ranks(both):
    labels = [
        torch.cat([samples(9, seed=rank)["label"], samples(4 * rank, seed=8)["label"]]).numpy()
        for rank in range(2)
    ]
    wrong = np.concatenate(
        [found["quality"][1].argmax(axis=1) != label for found, label in zip(both, labels, strict=True)]
    )
    assert len(wrong) == 22
    for found in both:
        assert found["quality"][0] == pytest.approx({"label": wrong.mean()})
