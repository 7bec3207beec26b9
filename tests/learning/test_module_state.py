"""Modes and frozen parts stay their owner's; buffers of any dtype are alike on all ranks, or left alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ranks import on_ranks
from samples import Elsewhere

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.learning.forward_pass import MiniBatch, named_outputs
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.module_state import frozen_parameters, on_cpu, still_modules
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import AGEM, ER
from rehearsal_kit.learning.strategies.strategy import Strategy, Term
from rehearsal_kit.rank.run_spec import keep_spec, read_network

CLASSES = 3


class Net(torch.nn.Module):
    """Two batch norms, and a buffer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.first = torch.nn.BatchNorm1d(6)
            self.second = torch.nn.BatchNorm1d(6, momentum=None)
            self.drop = torch.nn.Dropout(0.5)
            self.layers = torch.nn.Linear(6, CLASSES)
            self.register_buffer("constant", torch.tensor([0.1, 0.7, 1 / 3]))
            self.register_buffer("seen", torch.zeros(2, dtype=torch.complex64))
            self.register_buffer("newest", torch.zeros(6, dtype=torch.bool))
            self.register_buffer("large", torch.tensor(2**60 + 1))

    def forward(self, x):
        if self.training:
            self.seen += complex(len(x), 1)
            self.newest.copy_(x[0] > 0)
            self.large += 1
        return {"label": self.layers(self.drop(self.second(self.first(x))))}


def samples(count, *, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 6, generator=random),
        "label": torch.randint(0, CLASSES, (count,), generator=random),
    }


def learner_of(network, groups=ProcessGroups(0, 1), **training):  # noqa: B008 - it is frozen
    settings = Training(**{"precision": "float32", "optimizer": "sgd", **training})
    learner = Learner(network, settings, device="cpu", groups=groups)
    learner.know(learner.meet(samples(2), "x"))
    return learner


# One rank ------------------------------------------------------------------------------------------------


def test_a_part_in_evaluation_mode_and_a_frozen_part_stay_so():
    network = Net()
    network.first.eval()
    network.second.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    learner = learner_of(network)
    learner.predict(samples(4)["x"])
    learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental())
    assert [name for name, module in network.named_modules() if not module.training] == ["first"]
    changed = {n for n, tensor in network.state_dict().items() if not torch.equal(tensor, before[n])}
    assert {"first.running_mean", "first.num_batches_tracked", "second.weight", "constant"}.isdisjoint(
        changed
    )
    assert {"second.running_mean", "layers.weight"} <= changed


def test_a_network_that_comes_from_inference_is_trained_as_a_whole():
    network = Net().eval()
    learner_of(network).step(MiniBatch(samples(8), {}, {}), strategy=Incremental())
    assert all(module.training for module in network.modules())


def test_a_run_knows_frozen_parts_and_modes_of_its_network_when_it_goes_on(tmp_path):
    from runkit import job_in

    network = ResNet(classes=4, width=4, stem="small")
    network.bn1.eval()
    network.conv1.requires_grad_(False)
    spec = job_in(tmp_path / "run", network=network)
    keep_spec(spec, ranks=1)
    again = read_network(spec.run)
    assert frozen_parameters(again) == frozen_parameters(network) == ["conv1.weight"]
    assert still_modules(again) == ["bn1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_body_of_another_dtype_is_trained_and_keeps_it(dtype):
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                body = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False), torch.nn.BatchNorm1d(6))
                self.body, self.head = body.to(dtype), torch.nn.Linear(6, CLASSES)

        def forward(self, x):
            return {"label": self.head(torch.relu(self.body(x.to(dtype))).float())}

    for optimizer in ("adam", "adamw", "sgd"):
        learner = learner_of(Mixed(), optimizer=optimizer, learning_rate=0.1, clip_norm=1.0)
        before = learner.state.weights()
        assert not learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental()).trouble
        after = learner.state.weights()
        assert all(after[n].dtype == before[n].dtype for n in before)
        assert all(not torch.equal(after[n], before[n]) for n in before)
        learner.state.adopt(learner.state.tensors())


def test_complex_parameters_are_trained():
    class Complex(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = torch.nn.Parameter(torch.ones(6, CLASSES, dtype=torch.complex64))

        def forward(self, x):
            return {"label": (x.to(torch.complex64) @ self.turn).abs()}

    learner = learner_of(Complex(), optimizer="adam", clip_norm=1.0)
    before = learner.state.weights()["turn"]
    assert not learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental()).trouble
    after = learner.state.weights()["turn"]
    assert not torch.equal(after, before)
    assert learner.state.fingerprint() == learner.state.fingerprint()


class Careless(Net):
    """Does to its buffers, at one step, what no rank could exchange."""

    careless = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("scale", torch.ones(1).expand(6), persistent=False)

    def forward(self, x):
        if self.training and self.careless is not None:
            self.careless()
        return super().forward(x)


@pytest.mark.parametrize("how", ["removed", "no buffer any more", "replaced", "of another dtype", "a cache"])
def test_a_buffer_that_a_failed_step_has_lost_is_there_again_for_the_next_one(how):
    network = Careless()
    learner = learner_of(network)
    learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental())
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = network.state_dict().keys()

    def careless():
        if how == "removed":
            network.first.running_mean = None
        elif how == "no buffer any more":
            del network.newest
            network.newest = torch.ones(6, dtype=torch.bool)
        elif how == "a cache":
            network.cache = torch.zeros(8)
        elif how == "replaced":
            network.seen = torch.zeros(3, dtype=torch.complex64)
        else:
            network.constant = network.constant.double()

    network.careless = careless
    assert learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental()).failed
    network.careless = None
    after = dict(network.named_buffers())
    assert after.keys() == before.keys()
    assert network.state_dict().keys() == state  # else no checkpoint would fit
    assert all(after[name].dtype == before[name].dtype for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not learner.step(MiniBatch(samples(8), {}, {}), strategy=Incremental()).trouble


# Outputs -------------------------------------------------------------------------------------------------


def test_outputs_that_meet_no_target_may_be_anything_and_one_that_does_is_named():
    logits, beside = torch.zeros(4, 3), torch.zeros(4, 7)
    odd = {"loss": torch.tensor(1.0), "none": None, "list": [1], "short": torch.zeros(1, 2)}
    found = named_outputs({"label": logits, "beside": beside, **odd}, ["label"], count=4)
    assert [*found] == ["label", "beside"]
    for wrong in odd.values():
        with pytest.raises(SettingsError, match=r"output 'label' is to meet the target.*for 4 samples"):
            named_outputs({"label": wrong}, ["label"], count=4)


# Whose memory --------------------------------------------------------------------------------------------


class Rude(Net):
    """Works in place on its input; so does its loss, on all it is given."""

    def forward(self, x):
        return super().forward(x.sub_(5.0))


def rude_loss(outputs, targets):
    loss = torch.nn.functional.cross_entropy(outputs["label"], targets["label"].clone(), reduction="none")
    targets["label"].zero_()
    return loss


@pytest.mark.parametrize("strategy", [Incremental(loss=rude_loss), ER(loss=rude_loss), AGEM(loss=rude_loss)])
def test_nothing_that_a_network_or_a_loss_is_given_belongs_to_a_shard_or_the_buffer(strategy):
    learner = learner_of(Rude())
    new, replayed = samples(8), samples(4, seed=1)
    copies = [{name: tensor.clone() for name, tensor in part.items()} for part in (new, replayed)]
    learner.meet(new, "x")
    learner.predict(new["x"])
    again = replayed if strategy.replays else {}
    assert not learner.step(MiniBatch(new, again, {}), strategy=strategy).trouble
    for part, copy in zip((new, replayed), copies, strict=True):
        assert all(torch.equal(part[name], copy[name]) for name in part)


# Two ranks -----------------------------------------------------------------------------------------------


class Failing(Net):
    """Fails for samples that say so; or only later, when gradients are taken."""

    def forward(self, x):
        if x.max() > 1e3:
            raise ArithmeticError("this sample cannot be")
        outputs = super().forward(x)
        if x.min() < -1e3:
            outputs["label"].register_hook(_refuse)
        return outputs


def _refuse(_):
    raise ArithmeticError("no gradient of this")


@dataclasses.dataclass(frozen=True)
class Uneven(Strategy):
    """Leaves out a term where it has no samples, which it must not."""

    def terms(self, batch):
        terms = [Term(name, 1.0, batch.new.loss()) for name in ("new", "more")]
        return terms if len(batch.new.targets["label"]) else terms[:1]


def on_this_rank(groups):
    found = {}
    own = samples(5 + 3 * groups.rank, seed=groups.rank)
    none = {name: tensor[:0] for name, tensor in own.items()}
    lonely = MiniBatch(own if groups.rank else none, {}, {})

    for name, batches in {"both, one": [MiniBatch(own, {}, {}), lonely], "one": [lonely]}.items():
        learner = learner_of(Net(), groups)
        for batch in batches:
            learner.step(batch, strategy=Incremental())
        found[name] = {n: t.numpy().copy() for n, t in learner.state.weights().items()}

    for name, value in {"forward": 1e4, "backward": -1e4}.items():
        learner = learner_of(Failing(), groups)
        bad = {**own, "x": torch.full_like(own["x"], value)} if groups.rank else own
        before = learner.state.fingerprint()
        stepped = learner.step(MiniBatch(bad, {}, {}), strategy=Incremental())
        found[name] = stepped.failed, bool(stepped.trouble), stepped.guilty, stepped.error
        found[name, "unchanged"] = learner.state.fingerprint() == before
        found[name, "goes on"] = learner.step(MiniBatch(own, {}, {}), strategy=Incremental()).trouble
    found["uneven"] = learner.step(lonely, strategy=Uneven()).error
    try:
        learner.metrics(iter([bad if groups.rank else own, own]))
    except ValueError as error:
        found["quality"] = str(error)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return on_ranks(2, tmp_path_factory.mktemp("both"), on_this_rank)


@pytest.mark.parametrize("when", ["both, one", "one"])
def test_a_rank_without_samples_holds_the_buffers_of_those_that_had_some(both, when):
    first, second = (found[when] for found in both)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    steps = 2 if when == "both, one" else 1
    assert first["first.num_batches_tracked"] == first["second.num_batches_tracked"] == steps
    assert first["large"] == 2**60 + 1 + steps
    np.testing.assert_array_equal(first["constant"], Net().constant.numpy())


def test_running_statistics_are_the_mean_over_the_ranks_that_had_samples(both):
    own = samples(8, seed=1)["x"].double()
    for found in both:
        state = found["one"]
        np.testing.assert_allclose(state["first.running_mean"], 0.1 * own.mean(dim=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(state["newest"], samples(8, seed=1)["x"][0].numpy() > 0)
        assert state["seen"][0] == complex(8, 1)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_error_on_one_rank_is_told_to_all_and_none_takes_the_step(both, where):
    first, second = (found[where] for found in both)
    assert first == (True, True, False, "")
    assert second[:3] == (True, True, True)
    assert second[3].startswith("ArithmeticError: ")
    assert "test_module_state.py" in second[3]
    assert all(found[where, "unchanged"] and not found[where, "goes on"] for found in both)


def test_a_strategy_with_another_number_of_terms_on_one_rank_is_an_error_and_no_endless_wait(both):
    assert all("another number elsewhere" in found["uneven"] for found in both)


def test_predictions_that_fail_on_one_rank_fail_alike_on_all(both):
    assert both[0]["quality"] == both[1]["quality"] != ""
    assert "this sample cannot be" in both[0]["quality"] or "rank 1" in both[0]["quality"]


def test_a_network_that_lies_on_a_gpu_is_copied_and_its_owners_stays_there():
    network = torch.nn.Linear(2, 2)
    assert on_cpu(network) is network
    network.register_buffer("scale", Elsewhere(torch.ones(2)))
    copied = on_cpu(network)
    assert torch.equal(copied.scale, torch.ones(2))
    assert copied.scale.device.type == "cpu"
    assert network.scale.device.type == "cuda"
    assert copied.weight is not network.weight
