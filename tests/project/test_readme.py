"""What README says about strategies of one's own runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from distributed.protocol.pickle import dumps, loads
from ranks import alone, small_job

from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.data.tensor_tasks import split_classes, write_task
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.record.commands import FinishStream
from rehearsal_kit.record.records import Steps, TaskEnded

README = Path(__file__).parents[2] / "README.md"


def own_strategy():
    found = re.search(r"<!-- strategy example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {"__name__": "__main__"}  # as a notebook's
    exec(found[1], names)
    return names["Balanced"]()


def arrivals(folder):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    images = labels.reshape(-1, 1, 1, 1) + torch.randn(80, 1, 8, 8, generator=random)
    tasks = split_classes(images, labels, classes_per_task=2, test=(images, labels))
    return [write_task(task, folder / f"{number}.h5") for number, task in enumerate(tasks)]


def test_a_strategy_of_ones_own_crosses_to_the_workers_and_trains(tmp_path):
    strategy = loads(dumps(own_strategy()))
    spec = small_job(
        tmp_path / "run",
        strategy=strategy,
        network=ConvNet(classes=4, width=4),
        training=Training(batch=8, epochs=1),
        rehearsal=Rehearsal(representatives=4, candidates=4, capacity=20),
    )
    outcome, timeline, _ = alone(spec, *arrivals(tmp_path), FinishStream())
    assert outcome == "finished"
    assert len(timeline.records(TaskEnded)) == 2
    terms = timeline.records(Steps)[-1].terms
    assert set(terms) == {"new", "old"}
    assert terms["old"] > 0
