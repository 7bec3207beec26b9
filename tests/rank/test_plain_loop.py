"""ER and DER++ written once more, as a plain loop of one process from the formulas, beside runs of ours.

Nothing of the package is in the loop. Both learn the same stream with several seeds; their mean final errors
must be the same within what seeds make of each.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ranks import alone, small_job
from torch.nn import functional

from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.commands import FinishStream

FEATURES, CLASSES, EACH = 8, 8, 240
BATCH, DRAWN, RATE, CAPACITY = 12, 4, 0.01, 60
ALPHA, BETA = 0.3, 0.8
SEEDS = range(6)


class Net(torch.nn.Module):
    """Logits of vectors."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, 24), torch.nn.Tanh(), torch.nn.Linear(24, CLASSES)
            )

    def forward(self, image):
        return self.layers(image)


def blobs(each, *, seed):
    """Gaussian blobs that overlap: no network tells them apart without errors."""
    centres = 1.1 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(CLASSES).repeat(each)
    noise = torch.randn(len(labels), FEATURES, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise, labels


@dataclass
class Stored:
    """One sample of the reservoir."""

    image: torch.Tensor
    label: torch.Tensor
    logits: torch.Tensor


class Reservoir:
    """Vitter's algorithm R."""

    def __init__(self, random):
        self.random, self.kept, self.seen = random, [], 0

    def offer(self, sample):
        self.seen += 1
        if len(self.kept) < CAPACITY:
            self.kept.append(sample)
        elif (place := int(self.random.integers(self.seen))) < CAPACITY:
            self.kept[place] = sample

    def draw(self):
        count = min(DRAWN, len(self.kept))
        return [self.kept[i] for i in self.random.choice(len(self.kept), count, replace=False)]


def stream():
    """Four tasks of two classes; what is not trained on is enough to tell a hundredth apart."""
    return split_classes(*blobs(EACH, seed=50), classes_per_task=2, test=blobs(400, seed=60))


def stacked(samples, name):
    return torch.stack([getattr(sample, name) for sample in samples])


def plain(kind, seed):
    """Final error of a plain loop. Optimizer and reservoir go on from task to task."""
    random, network = np.random.default_rng(seed), Net(seed)
    optimizer, reservoir = torch.optim.Adam(network.parameters(), lr=RATE), Reservoir(random)
    images, labels = blobs(EACH, seed=50)
    for first in range(0, CLASSES, 2):
        mine = torch.nonzero((labels == first) | (labels == first + 1)).flatten()
        order = mine[torch.from_numpy(random.permutation(len(mine)))]
        for chosen in order.split(BATCH):  # once: ours never counts a sample twice that comes again
            image, label = images[chosen], labels[chosen]
            logits = network(image)
            loss = loss_of(kind, network, reservoir, (label, logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for row in range(len(chosen)):
                reservoir.offer(Stored(image[row], label[row], logits[row].detach()))
    with torch.no_grad():
        wrong = [network(task.test["image"]).argmax(dim=1) != task.test["label"] for task in stream()]
    return statistics.fmean(float(each.float().mean()) for each in wrong)


def loss_of(kind, network, reservoir, new):
    label, logits = new
    cross_entropy = functional.cross_entropy(logits, label)
    if kind == "Incremental" or not reservoir.kept:
        return cross_entropy
    drawn = reservoir.draw()
    again, wanted = network(stacked(drawn, "image")), stacked(drawn, "label")
    if kind == "ER":  # one mean over all b + r
        return functional.cross_entropy(torch.cat([logits, again]), torch.cat([label, wanted]))
    if kind == "DERpp":  # two draws
        other = reservoir.draw()
        distance = functional.mse_loss(network(stacked(other, "image")), stacked(other, "logits"))
    else:  # one draw for both terms
        distance = functional.mse_loss(again, stacked(drawn, "logits"))
    return cross_entropy + ALPHA * distance + BETA * functional.cross_entropy(again, wanted)


STRATEGIES = {
    "Incremental": Incremental(),
    "ER": ER(balance="samples"),
    "DERpp": DERpp(alpha=ALPHA, beta=BETA, draws=2),
    "DERpp, one draw": DERpp(alpha=ALPHA, beta=BETA, draws=1),
}


def ours(kind, seed, folder):
    spec = small_job(
        folder / f"{kind}-{seed}",
        seed=seed,
        network=Net(seed),
        strategy=STRATEGIES[kind],
        training=Training(batch=BATCH, epochs=1, learning_rate=RATE, precision="float32", scaling="none"),
        rehearsal=Rehearsal(
            representatives=DRAWN,
            distillation=DRAWN,
            candidates=BATCH,
            capacity=CAPACITY,
            policy="reservoir",
        ),
    )
    outcome, timeline, _ = alone(
        spec, *(write_task(task, spec.run.new_task()) for task in stream()), FinishStream()
    )
    assert outcome == "finished"
    return statistics.fmean(timeline.error_matrix("test")[-1])


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Final errors by kind: of the plain loop, and of ours, one for each seed."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        kind: ([plain(kind, seed) for seed in SEEDS], [ours(kind, seed, folder) for seed in SEEDS])
        for kind in STRATEGIES
    }


@pytest.mark.parametrize("kind", STRATEGIES)
def test_final_errors_are_those_of_the_plain_loop_within_what_seeds_make_of_them(errors, kind):
    apart, spread = difference(*errors[kind])
    assert apart < 2.5 * spread, f"{kind}: {errors[kind]}"


def test_the_kinds_differ_by_more_than_is_tolerated(errors):
    for one, other in (("Incremental", "ER"), ("ER", "DERpp")):
        apart, spread = difference(errors[one][0], errors[other][1])
        assert apart > 5 * spread, f"{one} and {other}: {errors[one][0]}, {errors[other][1]}"


def difference(first, second):
    """How far two means are apart, and the standard deviation of that difference."""
    variances = (statistics.variance(first) + statistics.variance(second)) / len(first)
    return abs(statistics.fmean(first) - statistics.fmean(second)), math.sqrt(variances)
