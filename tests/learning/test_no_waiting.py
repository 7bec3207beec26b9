"""A step is under way on the device as a whole before the host reads anything of it, by every strategy."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from operations import Operations
from ranks import on_ranks
from waiting import NoWaiting, WaitedError

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.stored_outputs import NO_MODEL, VERSION, with_outputs
from rehearsal_kit.learning.strategies.choice import named_strategy
from rehearsal_kit.learning.strategies.dark import DERpp, DERppACE
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.registry import STRATEGIES
from rehearsal_kit.learning.strategies.replay import ER

ALONE = ProcessGroups(0, 1)
BY_NAME = {
    **{name: named_strategy(name) for name in STRATEGIES},
    "DERpp, two draws": DERpp(draws=2),
    "DERppACE, two draws": DERppACE(draws=2),
    "ER, balanced": ER(balance="tasks"),
}


CASES = [
    *((name, "Normalised", True) for name in BY_NAME),
    *((name, "Normalised", False) for name, strategy in BY_NAME.items() if strategy.distils),
    ("ER", "ConvNet", True),
]
"""Strategy, network, and whether all representatives have stored outputs."""


class Normalised(torch.nn.Module):
    """With buffers: statistics, which are averaged, and a counter, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.1), torch.nn.Flatten()
        )
        self.last = torch.nn.Linear(3 * 6 * 6, 4)

    def forward(self, images):
        return {"label": self.last(self.layers(images))}


def samples(count):
    return {
        "image": torch.rand(count, 1, 8, 8),
        "label": torch.arange(count) % 4,
        IDENTITY: torch.arange(count),
    }


def drawn(made):
    """Representatives with stored outputs; of the last one no model has made any unless `made`."""
    kept = with_outputs(samples(4), {"label": torch.rand(4, 4)}, version=3)
    if not made:
        kept[VERSION][-1] = NO_MODEL
    return kept


def on_meta(fields):
    """All on the device, but for what is known to the host."""
    return {name: tensor if name == VERSION else tensor.to("meta") for name, tensor in fields.items()}


def learner_on(device, network, **settings):
    training = Training(average=0.9, plastic_average=0.5, clip_norm=1.0, precision="float32", **settings)
    known = Learner(network, training, device="cpu", groups=ALONE)
    signature = known.meet(samples(3), "image")
    made = Learner(network, training, device=device, groups=ALONE, lag=2)
    made.know(signature)
    return made


@pytest.mark.parametrize(("name", "network", "made"), CASES)
def test_a_step_reads_nothing_of_the_device_before_it_reads_what_it_came_to(name, network, made):
    strategy = BY_NAME[name]
    batch = MiniBatch.augmented(
        on_meta(samples(5)), on_meta(drawn(made)), on_meta(drawn(made)), strategy=strategy
    )
    learner = learner_on("meta", ConvNet(classes=4, width=2) if network == "ConvNet" else Normalised())
    with pytest.raises(WaitedError) as found, NoWaiting("meta"):
        learner.step(replace(batch, asks_losses=True), strategy=strategy)
    assert "a copy from the device to the host at learning/summed_step.py" in str(found.value)
    assert "in _looked_at" in str(found.value)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimizer_is_under_way_before_a_step_is_read_and_asks_for_no_number(optimizer):
    learner = learner_on("cpu", Normalised(), optimizer=optimizer)
    with NoWaiting("cpu"), Operations() as operations:
        learner.launch(MiniBatch(samples(5), samples(2), {}), strategy=ER())
    assert f"_fused_{optimizer}_" in operations.seen
    assert [bool(stepped.trouble) for stepped in learner.read()] == [False]


def state_of(learner):
    return {name: tensor.clone() for name, tensor in learner.state.tensors().items()}


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_step_that_is_not_sound_is_left_out_by_the_device_bit_for_bit(optimizer, when):
    network = Normalised()
    spoilt, sound = (learner_on("cpu", copy.deepcopy(network), optimizer=optimizer) for _ in range(2))
    assert spoilt.state.leaves_out
    for step in range(4):
        torch.manual_seed(step)
        batch = MiniBatch(samples(5), samples(2), {})
        if step == when:
            bad = {**batch.new, "image": batch.new["image"] * torch.nan}
            stepped = spoilt.step(replace(batch, new=bad), strategy=ER(), seed=step)
            assert "loss became NaN" in stepped.trouble
            assert stepped.guilty
        told = [each.step(batch, strategy=ER(), seed=step) for each in (spoilt, sound)]
        assert told[0].terms == told[1].terms
    assert same(state_of(spoilt), state_of(sound))


@pytest.mark.parametrize("name", BY_NAME)
def test_steps_that_are_not_read_at_once_come_to_the_same(name):
    strategy, network = BY_NAME[name], Normalised()
    # Not by Adam, whose first steps are as large where a gradient is nothing but rounding.
    training = Training(average=0.9, plastic_average=0.5, clip_norm=1.0, precision="float32", optimizer="sgd")
    made = [Learner(copy.deepcopy(network), training, device="cpu", groups=ALONE, lag=lag) for lag in (2, 0)]
    for step in range(3):
        batch = MiniBatch.augmented(samples(5), drawn(step == 1), drawn(step == 1), strategy=strategy)
        for learner in made:
            learner.know(learner.meet(samples(3), "image"))
            assert not learner.step(batch, strategy=strategy, seed=step).trouble
    others = state_of(made[1])
    for which, tensor in state_of(made[0]).items():
        assert torch.allclose(tensor, others[which], atol=1e-6), which


def test_parameters_that_lie_by_channels_are_stepped_as_others_are():
    kinds = (torch.contiguous_format, torch.channels_last)
    networks = [ConvNet(classes=4, width=3).to(memory_format=kind) for kind in kinds]
    made = [learner_on("cpu", network, optimizer="sgd") for network in networks]
    batch = MiniBatch(samples(5), {}, {})
    for learner in made:
        for _ in range(2):
            assert not learner.step(batch, strategy=Incremental()).trouble
    strides = [{p.stride() for p in network.parameters()} for network in networks]
    assert strides[0] != strides[1]
    assert all(p.grad.stride() == p.stride() for network in networks for p in network.parameters())
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


class Behind(Normalised):
    """Writes to a buffer where torch does not count it, if told so."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("missing", torch.full((2,), torch.nan))  # nobody writes to it
        self.behind = False

    def forward(self, images):
        if self.behind:
            self.table.data.add_(1)
        return super().forward(images)


def behind_the_ranks(groups):
    """What a rank sees of a step in which the last rank writes like that, and of a sound one after it."""
    torch.manual_seed(0)
    learner = Learner(Behind(), Training(precision="float32"), device="cpu", groups=groups, lag=2)
    learner.know(learner.meet(samples(3), "image"))
    batch, found = MiniBatch(samples(5 + groups.rank), {}, {}), []
    for behind in (True, False):
        learner.network.behind = behind and groups.rank == groups.ranks - 1
        stepped = learner.step(batch, strategy=Incremental())
        found.append(
            (stepped.failed, stepped.error, learner.network.table.tolist(), learner.state.fingerprint())
        )
    return found


def test_a_buffer_that_is_written_to_behind_torch_is_an_error_and_no_rank_takes_the_step(tmp_path):
    first, last = on_ranks(2, tmp_path, behind_the_ranks)
    assert [failed for failed, *_ in first] == [failed for failed, *_ in last] == [True, False]
    assert [error for _, error, *_ in first] == ["", ""]
    assert "has written to its buffer table where torch does not count it" in last[0][1]
    assert not last[1][1]
    assert [of for *_, of in first] == [of for *_, of in last]
    assert all(table == [0, 0, 0] for _, _, table, _ in first + last)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_nothing_is_taken_after_a_step_that_is_not_sound_until_the_host_has_seen_it(optimizer):
    network = Normalised()
    late, once = (learner_on("cpu", copy.deepcopy(network), optimizer=optimizer) for _ in range(2))
    batches = [MiniBatch(samples(5), samples(2), {}) for _ in range(4)]
    bad = replace(batches[1], new={**batches[1].new, "image": batches[1].new["image"] * torch.inf})
    for learner in (late, once):
        learner.launch(batches[0], strategy=ER())
    for step, batch in enumerate((bad, batches[2]), start=1):
        late.launch(batch, strategy=ER(), seed=step)
        assert same(late.network.state_dict(), once.network.state_dict())  # before anybody has looked
        assert same(late.state.average, once.state.average)
    (seen,) = late.read(but=2)
    assert not seen.trouble
    (trouble,) = late.read()
    assert trouble.trouble == "the loss became NaN"
    assert trouble.guilty
    assert late.read() == []
    for learner in (late, once):
        assert not learner.step(batches[3], strategy=ER(), seed=3).trouble
    assert same(state_of(late), state_of(once))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())
