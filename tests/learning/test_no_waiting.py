"""No step waits for the device before it is launched as a whole: by every strategy, alone and on two ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from waiting import NoWaiting, WaitedError

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.stored_outputs import NO_MODEL, VERSION, disowning, for_layout, with_outputs
from rehearsal_kit.learning.strategies.choice import named_strategy
from rehearsal_kit.learning.strategies.dark import DERpp, DERppACE
from rehearsal_kit.learning.strategies.registry import STRATEGIES
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER

ALONE = ProcessGroups(0, 1)
BY_NAME = {
    **{name: named_strategy(name) for name in STRATEGIES},
    "DERpp, two draws": DERpp(draws=2),
    "DERppACE, two draws": DERppACE(draws=2),
    "ER, balanced": ER(balance="tasks"),
}


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
    """Representatives on the device, as they come; of the last one no model has made outputs unless `made`."""
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
    made = Learner(network, training, device=device, groups=ALONE, asynchronous=True)
    made.know(signature)
    return made


@pytest.mark.parametrize("made", [True, False], ids=["all with outputs", "one without"])
@pytest.mark.parametrize("network", [Normalised, lambda: ConvNet(classes=4, width=2)])
@pytest.mark.parametrize("name", BY_NAME)
def test_a_step_reads_nothing_of_the_device_before_it_reads_what_it_came_to(name, network, made):
    strategy = BY_NAME[name]
    batch = MiniBatch.augmented(
        on_meta(samples(5)), on_meta(drawn(made)), on_meta(drawn(made)), strategy=strategy
    )
    learner = learner_on("meta", network())
    with pytest.raises(WaitedError) as found, NoWaiting("meta"):
        learner.step(replace(batch, asks_losses=True), strategy=strategy)
    assert "a copy from the device to the host at learning/summed_step.py" in str(found.value)
    assert "in _read" in str(found.value)
