"""Every strategy against its paper: loss and gradient, alone and over two ranks; and A-GEM's projection.

The references are written here in double precision from the formulas, with nothing of the package in them.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from ranks import Tiny, on_ranks
from torch.nn import functional

from rehearsal_kit.base.errors import RankError, SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.stored_outputs import NO_MODEL, VERSION, with_outputs, without_outputs
from rehearsal_kit.learning.strategies.choice import named_strategy, steer_to, switched
from rehearsal_kit.learning.strategies.dark import DER, DERpp, DERppACE
from rehearsal_kit.learning.strategies.losses import likelier, squared_distance, supervised_loss
from rehearsal_kit.learning.strategies.references import Cumulative, FromScratch, Incremental
from rehearsal_kit.learning.strategies.registry import STRATEGIES as STRATEGIES_OF_OURS
from rehearsal_kit.learning.strategies.replay import AGEM, CLSER, ER, ERACE, MeanER
from rehearsal_kit.record.commands import Steer

ALPHA, BETA, TASKS, CONSISTENCY = 0.3, 0.7, 4, 0.6
BY_ITSELF = ProcessGroups(0, 1)
STRATEGIES = {
    "Incremental": Incremental(),
    "FromScratch": FromScratch(),
    "Cumulative": Cumulative(),
    "ER": ER(balance="samples"),
    "ER, equal": ER(balance="equal"),
    "ER, tasks": ER(balance="tasks"),
    "ER, 0.25": ER(balance=0.25),
    "ERACE": ERACE(),
    "MeanER": MeanER(balance="samples", consistency=CONSISTENCY),
    "CLSER": CLSER(balance="samples", consistency=CONSISTENCY),
    "AGEM": AGEM(),
    "DER": DER(alpha=ALPHA),
    "DERpp": DERpp(alpha=ALPHA, beta=BETA, draws=2),
    "DERpp, one draw": DERpp(alpha=ALPHA, beta=BETA, draws=1),
    "DERppACE": DERppACE(alpha=ALPHA, beta=BETA, draws=2),
    "DERppACE, one draw": DERppACE(alpha=ALPHA, beta=BETA, draws=1),
}
OLD_TO_NEW = {"ER, equal": 1.0, "ER, tasks": TASKS - 1.0, "ER, 0.25": 0.25}
NEW_ALONE = ("Incremental", "FromScratch", "Cumulative")
KINDS = ("label", "image")
CLASSES = 5
AVERAGES = ("now.average.", "now.plastic.")
SEEN = 3
"""Classes of the new samples; representatives are of all."""


def kinds_of(name):
    return ("label",) if STRATEGIES[name].for_classes else KINDS


BY_KIND = [(name, kind) for name in STRATEGIES for kind in kinds_of(name)]

# Samples of a rank: new, replayed, distilled, and how many of the distilled have outputs.
ALONE = ((5, 3, 4, 3),)
SPREAD = {
    "5 and 3 new, one rank without stored outputs": ((5, 3, 4, 3), (3, 2, 4, 0)),
    "one rank without any sample": ((4, 3, 2, 2), (0, 0, 0, 0)),
    "one rank without new samples": ((0, 3, 1, 1), (6, 1, 3, 2)),
    "nothing but new samples": ((5, 0, 0, 0), (2, 0, 0, 0)),
}


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, CLASSES)
            )

    def forward(self, vectors):
        return {"label": self.layers(vectors)}


def network_of(kind):
    return Classifier() if kind == "label" else Tiny(seed=5)


def samples(kind, count, *, seed, classes=CLASSES):
    random = torch.Generator().manual_seed(seed)
    identity = {IDENTITY: torch.arange(count) + 1000 * seed}
    if kind == "label":
        label = torch.randint(0, classes, (count,), generator=random)
        return {"input": torch.randn(count, 6, generator=random), "label": label, **identity}
    fields = ("input", "amplitude", "phase")
    return {name: torch.randn(count, 1, 6, 6, generator=random) for name in fields} | identity


def distilled_samples(kind, count, made, *, seed):
    """Samples with stored outputs; those of all but the first `made` were made by no model."""
    random = torch.Generator().manual_seed(seed + 500)
    shapes = {"label": (CLASSES,)} if kind == "label" else {"amplitude": (1, 6, 6), "phase": (1, 6, 6)}
    outputs = {name: 2 * torch.randn(count, *shape, generator=random) for name, shape in shapes.items()}
    kept = with_outputs(samples(kind, count, seed=seed), outputs, version=7)
    kept[VERSION][made:] = NO_MODEL
    for name in outputs:
        kept[f"outputs.{name}"][made:] = 1e9
    return kept


def batches(kind, sizes, strategy=None):
    """One mini-batch for each rank, as much of it as the strategy has a use for."""
    whole = [
        MiniBatch(
            samples(kind, new, seed=10 * rank + 1, classes=SEEN - rank),
            distilled_samples(kind, replayed, min(replayed, made), seed=10 * rank + 2) if replayed else {},
            distilled_samples(kind, distilled, made, seed=10 * rank + 3) if distilled else {},
        )
        for rank, (new, replayed, distilled, made) in enumerate(sizes)
    ]
    if strategy is None:
        return [replace(each, replayed=without_outputs(each.replayed)) for each in whole]
    used = [MiniBatch.augmented(*each.parts, strategy=strategy) for each in whole]
    return [replace(each, tasks=TASKS) for each in used]


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def moved(name, tensor):
    """Averages that are not where the weights are: one larger, one turned, so that each knows some better."""
    if not tensor.is_floating_point() or not name.startswith(AVERAGES):
        return tensor
    if name.startswith(AVERAGES[0]):
        return tensor + 0.2
    return tensor + 0.4 * torch.arange(tensor.numel()).cos().reshape(tensor.shape)


def step_of(strategy, kind, batch, *, groups=BY_ITSELF, **training):
    """What one step does: what it says, the gradient the optimizer was given, and the weights after it.

    The first step of SGD with learning rate 1 takes the gradient away from the weights.
    """
    network = network_of(kind)
    before = flat(network)
    averages = {
        "average": 0.5 if strategy.asks_average else None,
        "plastic_average": 0.4 if strategy.asks_plastic_average else None,
    }
    settings = Training(optimizer="sgd", learning_rate=1.0, precision="float32", **averages, **training)
    learner = Learner(network, settings, device="cpu", groups=groups)
    learner.state.adopt({name: moved(name, tensor) for name, tensor in learner.state.tensors().items()})
    learner.know(learner.meet(samples(kind, 2, seed=0), "input"))
    stepped = learner.step(batch, strategy=strategy)
    assert not stepped.trouble
    return stepped, before - flat(network), flat(network)


# The papers ----------------------------------------------------------------------------------------------


def together(parts):
    parts = [part for part in parts if part]
    if not parts:
        return None
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return whole if len(whole["input"]) else None


def of_models(part):
    """The distilled samples that have outputs."""
    if part is None:
        return None
    kept = {name: tensor[part[VERSION] >= 0] for name, tensor in part.items()}
    return kept if len(kept["input"]) else None


def task_loss(network, part, *, among=None):
    """Cross-entropy, or mean absolute error of amplitude and of phase; the mean over the samples.

    among: the classes that compete, by default all.
    """
    if part is None:
        return torch.zeros((), dtype=torch.float64)
    outputs = network(part["input"].double())
    if among is not None:
        logits = outputs["label"]
        theirs = torch.stack([row[among].exp().sum() for row in logits]).log()
        return (theirs - logits[torch.arange(len(logits)), part["label"]]).mean()
    if "label" in part:
        return functional.cross_entropy(outputs["label"], part["label"])
    return sum(functional.l1_loss(outputs[name], part[name].double()) for name in ("amplitude", "phase"))


def distance(network, part):
    """Mean squared difference to what was stored, added up over the fields."""
    if part is None:
        return torch.zeros((), dtype=torch.float64)
    outputs = network(part["input"].double())
    return sum(functional.mse_loss(outputs[name], part[f"outputs.{name}"].double()) for name in outputs)


def of_average(network, part, name=AVERAGES[0]):
    """What the network makes of the samples where every weight is as in one of the averages."""
    average = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.copy_(moved(name, parameter))
        return average(part["input"].double())


def distance_to_average(network, part):
    """Mean squared difference to what the average makes of the same."""
    if part is None:
        return torch.zeros((), dtype=torch.float64)
    held_to, outputs = of_average(network, part), network(part["input"].double())
    return sum(functional.mse_loss(outputs[name], held_to[name]) for name in outputs)


def known_better(network, part):
    """By sample: the logits of both averages, that which gives its class the larger probability first."""
    pairs = zip(*(of_average(network, part, name)["label"] for name in AVERAGES), strict=True)
    return [
        sorted(pair, key=lambda logits: -float(logits.exp()[label] / logits.exp().sum()))
        for pair, label in zip(pairs, part["label"], strict=True)
    ]


def distance_to_the_better_average(network, part):
    """Mean squared difference to the logits of whichever average knows the class of the sample better."""
    if part is None:
        return torch.zeros((), dtype=torch.float64)
    better = torch.stack([best for best, _ in known_better(network, part)])
    return functional.mse_loss(network(part["input"].double())["label"], better)


def gradient_of(loss, network):
    if not loss.requires_grad:
        return torch.zeros_like(flat(network))
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def projected(gradient, reference):
    """A-GEM, equation 11."""
    along = gradient @ reference
    return gradient if along >= 0 else gradient - along / (reference @ reference) * reference


def expected(name, kind, sizes):
    """Terms and gradient, as one process with the samples of all ranks must find them."""
    network = copy.deepcopy(network_of(kind)).double()
    per_rank = batches(kind, sizes, STRATEGIES[name])
    new = together([batch.new for batch in per_rank])
    replayed = together([batch.replayed for batch in per_rank])
    again = "replayed" if "one draw" in name else "distilled"
    distilled = of_models(together([getattr(batch, again) for batch in per_rank]))
    among = new["label"].unique() if "ACE" in name and new is not None else None
    if name in NEW_ALONE:
        terms = {"new": task_loss(network, new)}
    elif name == "ER":
        terms = {"augmented": task_loss(network, together([new, replayed]))}
    elif name in OLD_TO_NEW:
        old = OLD_TO_NEW[name] / (1 + OLD_TO_NEW[name])
        terms = {
            "new": 2 * (1 - old) * task_loss(network, new),
            "replay": 2 * old * task_loss(network, replayed),
        }
    elif name == "MeanER":
        terms = {
            "augmented": task_loss(network, together([new, replayed])),
            "consistency": CONSISTENCY * distance_to_average(network, replayed),
        }
    elif name == "CLSER":
        terms = {
            "augmented": task_loss(network, together([new, replayed])),
            "consistency": CONSISTENCY * distance_to_the_better_average(network, replayed),
        }
    elif name == "ERACE":
        terms = {"new": task_loss(network, new, among=among), "replay": task_loss(network, replayed)}
    elif name == "AGEM":
        terms = {"new": task_loss(network, new), "reference": task_loss(network, replayed)}
    else:
        terms = {
            "new": task_loss(network, new, among=among),
            "distillation": ALPHA * distance(network, distilled),
        }
        if name != "DER":
            terms["replay"] = BETA * task_loss(network, replayed)
    if name == "AGEM":
        gradient = projected(*(gradient_of(term, network) for term in terms.values()))
    else:
        gradient = gradient_of(sum(terms.values()), network)
    return {term: float(value.detach()) for term, value in terms.items()}, gradient


def assert_as_in_the_paper(stepped_terms, change, *, name, kind, sizes):
    terms, gradient = expected(name, kind, sizes)
    assert stepped_terms == pytest.approx(terms, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(torch.as_tensor(change).double(), gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), BY_KIND)
def test_loss_and_gradient_are_those_of_the_paper(name, kind):
    (batch,) = batches(kind, ALONE, STRATEGIES[name])
    stepped, change, _ = step_of(STRATEGIES[name], kind, batch)
    assert_as_in_the_paper(stepped.terms, change, name=name, kind=kind, sizes=ALONE)
    assert stepped.loss == pytest.approx(sum(stepped.terms.values()))


def test_either_average_knows_some_of_the_representatives_better():
    """Else the tests of CLS-ER would not see which one is asked."""
    (batch,) = batches("label", ALONE, CLSER())
    network = copy.deepcopy(network_of("label")).double()
    slow = of_average(network, batch.replayed)["label"]
    pairs = zip(known_better(network, batch.replayed), slow, strict=True)
    better = [torch.equal(best, own) for (best, _), own in pairs]
    assert set(better) == {True, False}


def test_of_outputs_that_are_no_classes_the_first_are_taken():
    outputs = {"label": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "y": torch.tensor([1.0, 2.0])}
    others = {"label": torch.tensor([[9.0, 9.0], [5.0, 5.0]]), "y": torch.tensor([3.0, 4.0])}
    targets = {"label": torch.tensor([0, 1], dtype=torch.uint8), "y": torch.zeros(2), "unmet": torch.zeros(2)}
    found = likelier(outputs, others, targets=targets)
    assert found["label"].tolist() == [[1.0, 0.0], [5.0, 5.0]]
    assert found["y"].tolist() == [1.0, 2.0]


def test_every_strategy_of_ours_is_held_to_its_formula():
    assert {strategy.name for strategy in STRATEGIES.values()} == STRATEGIES_OF_OURS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_references_differ_from_each_other_by_far_more_than_is_tolerated(kind):
    # As Incremental: the first differ by the tasks that they train on, A-GEM where gradients point apart.
    same = {"FromScratch", "Cumulative", "AGEM"}
    gradients = [expected(name, of, ALONE)[1] for name, of in BY_KIND if of == kind and name not in same]
    for place, gradient in enumerate(gradients):
        for other in gradients[place + 1 :]:
            assert (gradient - other).abs().max() > 1e-3


def test_which_tasks_are_trained_on_and_from_where():
    everything = {"FromScratch", "Cumulative"}
    for name, strategy in STRATEGIES.items():
        assert strategy.tasks(3) == (range(4) if name in everything else range(3, 4))
        assert strategy.tasks(0) == range(1)
        assert strategy.restarts == (name == "FromScratch")


# Two ranks -----------------------------------------------------------------------------------------------


def against(agreeing, replayed):
    """New samples for two ranks: those of one agree with the representatives, those of the other do not."""
    wrong = (replayed["label"] + 1) % CLASSES
    return [agreeing, {**replayed, "label": wrong}]


def torn_apart():
    """Mini-batches of two ranks where projecting on each rank gives something else than projecting once."""
    replayed = samples("label", 6, seed=40)
    agreeing = {name: tensor[:2] for name, tensor in replayed.items()}
    return [MiniBatch(new, replayed, {}) for new in against(agreeing, replayed)]


def on_this_rank(groups, own):
    found = {}
    for name, strategy in STRATEGIES.items():
        for kind in kinds_of(name):
            for case, sizes in SPREAD.items():
                batch = batches(kind, sizes, strategy)[groups.rank]
                stepped, change, weights = step_of(strategy, kind, batch, groups=groups)
                found[name, kind, case] = dict(stepped.terms), change.numpy(), weights.numpy()
    _, change, weights = step_of(AGEM(), "label", torn_apart()[groups.rank], groups=groups)
    found["torn"] = change.numpy(), weights.numpy()
    sizes = SPREAD["5 and 3 new, one rank without stored outputs"]
    stepped, change, _ = step_of(
        pickle.loads(own), "label", batches("label", sizes)[groups.rank], groups=groups
    )
    found["own"] = dict(stepped.terms), change.numpy()
    try:
        step_of(DERpp(draws=2), "label", batches("label", [(0, 0, 2, 0)] * 2)[groups.rank], groups=groups)
    except RankError as error:
        found["nothing"] = str(error)
    return found


IN_A_NOTEBOOK = '''
from dataclasses import dataclass

from rehearsal_kit.learning.strategies.losses import supervised_loss
from rehearsal_kit.learning.strategies.strategy import Strategy, Term


@dataclass(frozen=True)
class Squares(Strategy):
    """Squares of the losses, half of it from representatives."""

    replays = True
    share: float = 0.5

    def terms(self, batch):
        new, replayed = batch.new, batch.replayed
        return [
            Term("new", 1.0, supervised_loss(new.outputs, new.targets) ** 2),
            Term("again", self.share, supervised_loss(replayed.outputs, replayed.targets) ** 2),
        ]
'''


def own_strategy():
    """As a notebook defines one: its class is in no module that a worker could import."""
    names = {"__name__": "__main__"}
    exec(IN_A_NOTEBOOK, names)
    return names["Squares"](share=0.25)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two ranks make of everything that is to be asked of two ranks: they are started once."""
    return on_ranks(2, tmp_path_factory.mktemp("both"), on_this_rank, cloudpickle.dumps(own_strategy()))


@pytest.mark.parametrize("case", SPREAD)
@pytest.mark.parametrize(("name", "kind"), BY_KIND)
def test_two_ranks_step_like_one_process_with_all_samples(both, name, kind, case):
    first, second = (found[name, kind, case] for found in both)
    assert np.array_equal(first[2], second[2])
    assert first[0] == second[0]
    assert_as_in_the_paper(first[0], first[1], name=name, kind=kind, sizes=SPREAD[case])


def test_a_gem_projects_the_gradients_of_all_ranks_not_those_of_each(both):
    network = copy.deepcopy(network_of("label")).double()
    parts = torn_apart()
    gradients = [
        [gradient_of(task_loss(network, part), network) for part in (batch.new, batch.replayed)]
        for batch in parts
    ]
    new, replayed = together([b.new for b in parts]), together([b.replayed for b in parts])
    once = projected(
        gradient_of(task_loss(network, new), network), gradient_of(task_loss(network, replayed), network)
    )
    counts = [len(batch.new["input"]) for batch in parts]
    on_each = sum(count * projected(*pair) for count, pair in zip(counts, gradients, strict=True)) / sum(
        counts
    )
    assert (gradients[0][0] @ gradients[0][1] > 0) != (gradients[1][0] @ gradients[1][1] > 0)
    assert (once - on_each).abs().max() > 1e-2
    for change, weights in (found["torn"] for found in both):
        torch.testing.assert_close(torch.as_tensor(change).double(), once, rtol=1e-4, atol=1e-6)
        assert np.array_equal(weights, both[0]["torn"][1])


def test_an_own_strategy_from_a_notebook_trains_in_other_processes(both):
    sizes = SPREAD["5 and 3 new, one rank without stored outputs"]
    per_rank = batches("label", sizes)
    network = copy.deepcopy(network_of("label")).double()

    def squares(part):
        logits = network(part["input"].double())["label"]
        return functional.cross_entropy(logits, part["label"], reduction="none").square().mean()

    new = squares(together([batch.new for batch in per_rank]))
    again = 0.25 * squares(together([batch.replayed for batch in per_rank]))
    gradient = gradient_of(new + again, network)
    for terms, change in (found["own"] for found in both):
        assert terms == pytest.approx({"new": float(new.detach()), "again": float(again.detach())}, rel=1e-5)
        torch.testing.assert_close(torch.as_tensor(change).double(), gradient, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_sample_anywhere_is_refused_on_all_ranks(both):
    assert all("no rank had a sample" in found["nothing"] for found in both)


# Distillation --------------------------------------------------------------------------------------------


class Normalised(torch.nn.Module):
    """Every sample of a mini-batch changes what it makes of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = torch.nn.BatchNorm1d(6), Classifier()

    def forward(self, vectors):
        return self.rest(self.first(vectors))


def weights_after(strategy, batch):
    torch.manual_seed(0)
    learner = Learner(Normalised(), Training(precision="float32"), device="cpu", groups=BY_ITSELF)
    learner.know(learner.meet(samples("label", 2, seed=0), "input"))
    learner.step(batch, strategy=strategy)
    return learner.state.weights()


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", [DER(), DERpp(draws=2)], ids=lambda strategy: strategy.name)
def test_samples_whose_outputs_no_model_made_change_nothing_bit_for_bit(strategy):
    (batch,) = batches("label", [(5, 3, 6, 2)])
    kept = {name: tensor[:2] for name, tensor in batch.distilled.items()}
    mixed = weights_after(strategy, batch)
    assert same(mixed, weights_after(strategy, MiniBatch(batch.new, batch.replayed, kept)))
    assert not same(mixed, weights_after(strategy, MiniBatch(batch.new, batch.replayed, {})))


def test_der_without_any_stored_output_is_incremental_bit_for_bit():
    (batch,) = batches("label", [(5, 3, 6, 0)])
    (made,) = batches("label", [(5, 3, 6, 6)])
    incremental = weights_after(Incremental(), batch)
    assert same(weights_after(DER(), batch), incremental)
    assert not same(weights_after(DER(), made), incremental)


@pytest.mark.parametrize("name", ["DER", "DERpp"])
def test_the_weights_of_the_terms_scale_their_gradients(name):
    batch = batches("label", ALONE)[0]
    once, _, thrice = (
        step_of(named_strategy(name, alpha=alpha), "label", batch)[1] for alpha in (0.0, 0.1, 0.3)
    )
    _, of_distillation, _ = step_of(named_strategy(name, alpha=0.1), "label", batch)
    torch.testing.assert_close(thrice - once, 3 * (of_distillation - once), rtol=1e-3, atol=1e-6)
    assert (thrice - once).abs().max() > 1e-3


# A-GEM ---------------------------------------------------------------------------------------------------


def test_a_gem_changes_nothing_where_the_gradients_agree():
    new = samples("label", 5, seed=1)
    _, alone, _ = step_of(Incremental(), "label", MiniBatch(new, {}, {}))
    stepped, change, _ = step_of(AGEM(), "label", MiniBatch(new, new, {}))
    assert torch.equal(change, alone)
    assert stepped.terms["new"] == stepped.terms["reference"]


def test_a_gem_without_representatives_is_incremental():
    new = samples("label", 5, seed=1)
    _, alone, _ = step_of(Incremental(), "label", MiniBatch(new, {}, {}))
    assert torch.equal(step_of(AGEM(), "label", MiniBatch(new, {}, {}))[1], alone)


@given(
    seed=some.integers(0, 2**30),
    size=some.integers(1, 2000),
    apart=some.sampled_from([0.0, 1e-7, 1e-4, 0.1, 1.0, 10.0]),
    new_scale=some.sampled_from([1e-15, 1e-3, 1.0, 1e15]),
    reference_scale=some.sampled_from([0.0, 1e-15, 1.0, 1e15]),
)
def test_what_a_gem_leaves_never_points_against_the_reference(seed, size, apart, new_scale, reference_scale):
    """apart: how far the gradient of the new samples is from the opposite of the reference."""
    random = np.random.default_rng(seed)
    towards = random.standard_normal(size)
    other = -towards + apart * random.standard_normal(size)
    gradients = torch.tensor(np.stack([new_scale * other, reference_scale * towards]), dtype=torch.float32)
    new, reference = gradients.double()
    left = AGEM().direction(gradients.clone())
    assert left.dtype == torch.float32
    along = float(left.double() @ reference)
    rounding = 1e-7 * left.double().norm() + 1e-14 * new.norm()
    assert along >= -float(rounding * reference.norm())
    if new @ reference >= 0:
        assert torch.equal(left, gradients[0])
    else:
        # Nothing but the part along the reference is taken away.
        exact = projected(new, reference)
        assert float((left.double() - exact).norm()) <= float(1e-7 * exact.norm() + 1e-14 * new.norm())


# Losses of samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_classes_may_be_integers_of_any_width(dtype):
    logits, label = torch.randn(5, CLASSES), torch.tensor([0, 3, 2, 1, 1])
    found = supervised_loss({"label": logits}, {"label": label.to(dtype)})
    torch.testing.assert_close(found, functional.cross_entropy(logits, label, reduction="none"))


@pytest.mark.parametrize("shape", [(), (3,), (1, 4, 4)], ids=str)
def test_losses_are_means_over_whatever_shape_a_sample_has(shape):
    output, target = torch.randn(5, *shape), torch.randn(5, *shape)
    difference = (output - target).reshape(5, -1)
    found = supervised_loss({"y": output, "unmet": output}, {"y": target, "other": target})
    torch.testing.assert_close(found, difference.abs().mean(dim=1))
    again = squared_distance({"y": output}, {"y": target})
    torch.testing.assert_close(again, difference.square().mean(dim=1))


def test_outputs_that_meet_no_target_are_an_error_that_names_both():
    with pytest.raises(SettingsError, match=r"outputs logits meet none of the targets label"):
        supervised_loss({"logits": torch.zeros(2, 3)}, {"label": torch.zeros(2, dtype=torch.int64)})


# By name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weights", "made"),
    [
        ("er", {}, ER()),
        ("er", {"balance": "tasks"}, ER(balance="tasks")),
        ("er-ace", {}, ERACE()),
        ("cls-er", {"consistency": 0.2}, CLSER(consistency=0.2)),
        ("DER++", {"alpha": 2.0, "beta": 0.5}, DERpp(alpha=2.0, beta=0.5)),
        ("DER++-ACE", {"draws": 2}, DERppACE(draws=2)),
        ("a-gem", {}, AGEM()),
        ("scratch", {}, FromScratch()),
    ],
)
def test_strategies_by_name(name, weights, made):
    assert named_strategy(name, **weights) == made
    assert switched(Incremental(), Steer(**steer_to(made))) == made


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("EWC", {}, f"known are {', '.join(STRATEGIES_OF_OURS)}"),
        ("ER", {"alpha": 1.0}, "ER has no alpha"),
        ("DER", {"alpha": -1.0}, "alpha is -1.0"),
        ("DERpp", {"beta": float("nan")}, "beta is nan"),
    ],
)
def test_strategies_that_cannot_be_are_refused(name, weights, words):
    with pytest.raises(SettingsError, match=words):
        named_strategy(name, **weights)


def test_a_strategy_of_somebodys_own_cannot_be_switched_to():
    with pytest.raises(SettingsError, match="has to be there from the beginning"):
        steer_to(own_strategy())
    with pytest.raises(SettingsError, match=r"strategy is 'erace', a text; give the strategy .* rk\.ERACE"):
        steer_to("erace")


def twice(outputs, targets):
    return 2 * supervised_loss(outputs, targets)


def test_an_own_loss_stays_when_strategy_or_weights_are_switched():
    steer = Steer(**steer_to(DERpp(alpha=2.0)))
    assert switched(ER(loss=twice), steer) == DERpp(alpha=2.0, loss=twice)
    assert switched(DER(alpha=1.0, loss=twice), Steer(alpha=3.0)) == DER(alpha=3.0, loss=twice)
    with pytest.raises(SettingsError, match="ER has no alpha"):
        switched(ER(), Steer(alpha=3.0))


@dataclass(frozen=True)
class Twice(ER):
    """ER with doubled losses."""

    def terms(self, batch):
        return [replace(term, weight=2.0 * term.weight) for term in super().terms(batch)]


def test_an_own_loss_and_an_own_subclass_do_what_they_say():
    batch = batches("label", ALONE)[0]
    _, plain, _ = step_of(ER(), "label", batch)
    for strategy in (ER(loss=twice), Twice()):
        torch.testing.assert_close(step_of(strategy, "label", batch)[1], 2 * plain, rtol=1e-4, atol=1e-6)
