"""Gradients go to the other ranks while the backward pass goes on, in one order and with the same bits."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
import torch
from waiting import NoWaiting, WaitedError

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.gradient_buckets import GradientBuckets
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import AGEM, ER

SMALL = 100 * 4 / 2**20
"""MiB of a bucket, so small that the network here has several."""
WIDTH, CLASSES = 9, 3
EARLY = [30, 81, 81, 99, 99]
"""Gradients in each of its buckets but the last; the second and the third are those of its branches."""


@dataclass(frozen=True)
class Watched(ProcessGroups):
    """Real ranks, or one that is alone; notes what it begins to add up, among whatever else is noted."""

    noted: list[object] = field(default_factory=list)

    def begin_sum(self, values):
        self.noted.append(values.numel())
        return super().begin_sum(values)


class Twins(Watched):
    """A rank among others that all do what it does."""

    def sum(self, values):
        return values.mul_(self.ranks)


def watched(groups):
    return Watched(**{each.name: getattr(groups, each.name) for each in fields(groups)})


class OnTheWayBack(torch.autograd.Function):
    """The same numbers; calls something in the backward pass."""

    @staticmethod
    def forward(way, values, called):
        way.called = called
        return values.clone()

    @staticmethod
    def backward(way, gradient):
        way.called()
        return gradient, None


class Ignoring(torch.autograd.Function):
    """The same numbers, whatever the weight: there is no gradient by it, rather than zeros."""

    @staticmethod
    def forward(_, values, weight):
        return values.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient, None


class Net(torch.nn.Module):
    """Two branches on a trunk, batch norm, and two parameters without a gradient.

    back: called in the backward pass between trunk and branches. swapped: whether the branches are computed,
    and with them their gradients, in the other order.
    """

    def __init__(self, back=lambda: None, *, swapped=False) -> None:
        super().__init__()
        self.back, self.swapped = back, swapped
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.ignored = torch.nn.Parameter(torch.ones(WIDTH))
            self.unused = torch.nn.Linear(WIDTH, WIDTH)
            self.trunk = torch.nn.Sequential(
                torch.nn.Linear(WIDTH, WIDTH),
                torch.nn.BatchNorm1d(WIDTH),
                torch.nn.Linear(WIDTH, WIDTH, bias=False),
            )
            self.left = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            self.right = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False), torch.nn.Tanh())
            self.last = torch.nn.Linear(WIDTH, CLASSES)

    def forward(self, vectors):
        trunk = Ignoring.apply(self.trunk(vectors), self.ignored)
        trunk = OnTheWayBack.apply(trunk, self.back)
        branches = [self.left, self.right]
        parts = [branch(trunk) for branch in (branches[::-1] if self.swapped else branches)]
        return {"label": self.last(parts[0] * parts[1])}


def samples(count, *, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, WIDTH, generator=random),
        "label": torch.randint(0, CLASSES, (count,), generator=random),
        IDENTITY: torch.arange(count),
    }


def learner_of(network, groups, *, lag=None, device="cpu", **training):
    training = Training(**{"precision": "float32", "bucket_mib": SMALL, **training})
    signature = Learner(network, training, device="cpu", groups=ProcessGroups(0, 1)).meet(samples(2), "x")
    learner = Learner(network, training, device=device, groups=groups, lag=lag)
    learner.know(signature)
    return learner


# Which lie where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "most", "cut"),
    [
        ([10, 4, 30, 5, 5], 10, [[5, 5], [30], [4], [10]]),
        ([10, 4, 30, 5, 5], 14, [[5, 5], [30], [10, 4]]),
        ([10, 4, 30, 5, 5], 54, [[10, 4, 30, 5, 5]]),
        ([10, 4, 30, 5, 5], None, [[10, 4, 30, 5, 5]]),
        ([30], 1, [[30]]),
    ],
)
def test_buckets_are_cut_from_the_last_parameter_on_and_keep_their_order_within(sizes, most, cut):
    parameters = [torch.full((size,), float(number)) for number, size in enumerate(sizes)]
    buckets = GradientBuckets(parameters, device="cpu", most=most)
    assert [[sizes[number] for number in range(len(sizes))[each]] for each in buckets.cuts] == cut
    assert buckets.sizes == [*map(sum, cut)]
    numbers = [torch.cat(parameters[each]) for each in buckets.cuts]
    assert all(map(torch.equal, buckets.shaped(numbers), parameters))


def test_buckets_are_taken_apart_into_gradients_of_the_shape_and_dtype_of_each_parameter():
    parameters = [torch.ones(2, 3), torch.ones(2, dtype=torch.complex64), torch.ones(1, dtype=torch.float64)]
    buckets = GradientBuckets(parameters, device="cpu", most=5)
    assert buckets.sizes == [5, 6]
    shaped = buckets.shaped([torch.arange(5.0), torch.arange(6.0)])
    assert [(each.shape, each.dtype) for each in shaped] == [(p.shape, p.dtype) for p in parameters]
    assert shaped[1].tolist() == [0 + 1j, 2 + 3j]


# When they are launched ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [SMALL, None])
def test_buckets_of_the_last_layers_are_launched_before_the_way_back_has_come_to_the_first(mib):
    groups = Twins(0, 2)
    learner = learner_of(Net(lambda: groups.noted.append("way back")), groups, bucket_mib=mib)
    assert not learner.step(MiniBatch(samples(5), {}, {}), strategy=Incremental()).trouble
    assert groups.noted == (["way back"] if mib is None else [*EARLY[:3], "way back", *EARLY[3:]])


def test_on_a_device_that_computes_later_the_host_reads_nothing_of_it_to_launch_them():
    groups = Twins(0, 2)
    learner = learner_of(Net(), groups, device="meta", lag=2, clip_norm=1.0)
    batch = MiniBatch({name: tensor.to("meta") for name, tensor in samples(5).items()}, {}, {})
    with pytest.raises(WaitedError, match="_looked_at"), NoWaiting("meta"):
        learner.step(batch, strategy=Incremental())
    assert groups.noted == EARLY


@pytest.mark.parametrize("mib", [SMALL, None])
def test_a_rank_that_is_alone_sends_nothing_early(mib):
    groups = Watched(0, 1)
    learner = learner_of(Net(), groups, bucket_mib=mib)
    assert not learner.step(MiniBatch(samples(5), {}, {}), strategy=Incremental()).trouble
    assert groups.noted == []


# Bits ----------------------------------------------------------------------------------------------------


def trained(groups, steps=range(12), *, state=None, late=False, lag=None, strategy=None, mib=SMALL):
    """Fingerprint, whole state, and what was begun to be added up, after steps of unequal ranks.

    late: whether ranks and their ways back are held up at random, and compute their branches in any order.
    """
    groups, random = watched(groups), np.random.default_rng(groups.rank)

    def hold_up():
        time.sleep(late * random.uniform(0, 0.003))

    learner = learner_of(Net(hold_up), groups, lag=lag, bucket_mib=mib, clip_norm=0.5, average=0.9)
    if state is not None:
        learner.state.adopt(state)
    for step in steps:
        hold_up()
        learner.network.swapped = late and bool(random.integers(2))
        count = 0 if groups.rank == 1 and step % 5 == 3 else 3 + groups.rank
        batch = MiniBatch(
            samples(count, seed=99 * step + groups.rank), samples(2 * (count > 0), seed=step + 7), {}
        )
        assert not learner.step(batch, strategy=strategy or ER(), seed=step).trouble
    return learner.state.fingerprint(), learner.state.tensors(), groups.noted


def of_this_rank(groups):
    """Everything that is to be asked of some ranks: fingerprints, and the launches of each, by name."""
    found, launches = {}, {}
    found["whole"], _, launches["whole"] = trained(groups)
    found["late"], _, launches["late"] = trained(groups, late=True)
    found["half"], state, _ = trained(groups, range(6))
    found["restarted"], _, launches["restarted"] = trained(groups, range(6, 12), state=state)
    found["flat"], _, launches["flat"] = trained(groups, mib=None)
    found["large"], _, launches["large"] = trained(groups, mib=1.0)
    for name, mib in {"read later": SMALL, "read later, flat": None}.items():
        found[name], *_ = trained(groups, lag=2, mib=mib)
    for name, mib in {"apart": SMALL, "apart, flat": None}.items():
        found[name], _, launches[name] = trained(groups, range(3), strategy=AGEM(), mib=mib)
    return found, launches


@pytest.fixture(scope="module")
def everywhere(pool):
    """What each of the ranks found, in their order."""
    return pool(of_this_rank)


def test_a_run_has_the_same_bits_again_held_up_at_random_and_begun_again_in_the_middle(everywhere):
    first, _ = everywhere[0]
    assert all(found == first for found, _ in everywhere)
    assert first["whole"] == first["late"] == first["restarted"] != first["half"]


def test_buckets_are_launched_in_one_order_whatever_came_first(everywhere):
    early = EARLY if len(everywhere) > 1 else []
    for _, launches in everywhere:
        assert launches["whole"] == launches["late"] == 12 * early
        assert launches["restarted"] == 6 * early


def test_two_ranks_have_the_bits_of_one_flat_sum_and_so_has_what_fits_into_one_bucket(everywhere):
    found, launches = everywhere[0]
    if len(everywhere) <= 2:  # of more, it hangs on where numbers lie in which order they are added up
        assert found["whole"] == found["flat"]
        assert found["read later"] == found["read later, flat"]
    assert found["large"] == found["flat"]
    assert launches["large"] == launches["flat"] == []


def test_gradients_that_are_kept_apart_go_together(everywhere):
    found, launches = everywhere[0]
    assert found["apart"] == found["apart, flat"]
    assert launches["apart"] == []


# Errors --------------------------------------------------------------------------------------------------


def failing_on_the_last_rank(groups):
    """Of a step on whose way back the last rank fails, and of one after it."""
    groups = watched(groups)
    launched_before, fails = [], [False, groups.rank == groups.ranks - 1]

    def fail():
        launched_before.append(len(groups.noted))
        if fails.pop():
            raise ArithmeticError("no way back")

    learner = learner_of(Net(fail), groups)
    before, found = learner.state.fingerprint(), []
    while fails:
        groups.noted.clear()
        stepped = learner.step(MiniBatch(samples(3 + groups.rank), {}, {}), strategy=Incremental())
        found.append(
            {
                "told": (stepped.failed, stepped.trouble, list(groups.noted)),
                "guilty": stepped.guilty,
                "error": stepped.error,
                "launched before": launched_before.pop(),
                "weights": learner.state.fingerprint(),
                "unchanged": learner.state.fingerprint() == before,
            }
        )
    return found


def test_an_error_half_way_back_is_told_to_all_and_no_rank_is_left_waiting(pool):
    found = pool(failing_on_the_last_rank)
    *others, guilty = (bad for bad, _ in found)
    assert guilty["error"].startswith("ArithmeticError: ")
    assert not any(bad["error"] for bad in others)
    assert [bad["guilty"] for bad, _ in found] == [False] * len(others) + [True]
    if others:
        assert guilty["launched before"] == 3
        assert guilty["told"][2] == EARLY
    for bad, good in found:
        assert bad["told"] == guilty["told"]
        assert bad["told"][:2] == (True, "the network or the strategy failed")
        assert bad["unchanged"]
        assert good["told"] == (False, "", guilty["told"][2])
        assert not good["unchanged"]
        assert good["weights"] == found[0][1]["weights"]


class Cut(Twins):
    """Its connection is lost at the second bucket, as it seems for that one alone."""

    def begin_sum(self, values):
        launched = super().begin_sum(values)
        if len(self.noted) == 2:
            raise RuntimeError("Connection closed by peer")
        return launched


def test_a_lost_connection_is_no_error_of_the_network():
    learner = learner_of(Net(), Cut(0, 2))
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        learner.step(MiniBatch(samples(5), {}, {}), strategy=Incremental())


class Within(Net):
    """Makes a backward pass of its own in that of the step, by its last layer."""

    def __init__(self) -> None:
        super().__init__(self.within)

    def within(self):
        with torch.enable_grad():
            self.trunk[2](torch.ones(1, WIDTH)).sum().backward()


class Altering(Net):
    """Its first layer alters the gradient of its last one, once that has come."""

    def __init__(self) -> None:
        super().__init__()
        came = []
        self.last.weight.register_hook(came.append)
        self.trunk[0].weight.register_hook(lambda _: [came.pop().mul_(2), None][1])


@pytest.mark.parametrize("network", [Within, Altering])
@pytest.mark.parametrize("mib", [SMALL, None])
def test_a_gradient_that_is_another_one_than_was_sent_is_an_error_and_not_a_wrong_step(mib, network):
    learner = learner_of(network(), Twins(0, 2), bucket_mib=mib)
    stepped = learner.step(MiniBatch(samples(5), {}, {}), strategy=Incremental())
    assert stepped.failed == (mib is not None)
    assert ("Training(bucket_mib=None)" in stepped.error) == (mib is not None)


def with_own_graph(gradient):
    with torch.enable_grad():
        return gradient * torch.ones((), requires_grad=True)


@pytest.mark.parametrize(("ranks", "mib"), [(1, SMALL), (2, SMALL), (2, None)])
def test_a_gradient_with_a_graph_of_its_own_is_one_like_any_other(ranks, mib):
    plain, own = Net(), Net()
    for layer in (own.trunk[0], own.last):
        layer.weight.register_hook(with_own_graph)
    found = []
    for network in (plain, own):
        learner = learner_of(network, Twins(0, ranks), bucket_mib=mib)
        assert not learner.step(MiniBatch(samples(5), {}, {}), strategy=Incremental()).error
        found.append(learner.state.fingerprint())
    assert found[0] == found[1]


def test_no_hook_is_left_on_the_parameters():
    network = Net()
    learner = learner_of(network, Twins(0, 2))
    failing = learner_of(Net(lambda: 1 / 0), Twins(0, 2))
    for each in (learner, failing):
        each.step(MiniBatch(samples(5), {}, {}), strategy=Incremental())
        parameters = [*each.network.parameters()]
        assert not any(itertools.chain(*(p._backward_hooks or {} for p in parameters)))
