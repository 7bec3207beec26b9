"""The lines that CONTRIBUTING gives to begin with do what they say, where people are told to put them."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch
from texts import ROOT, block

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.data.scans import opening
from rehearsal_kit.data.scans.layouts.registry import Layout
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.network import Network


def module(code: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of these lines, which can be imported while the test lasts."""
    made = ModuleType("recipe")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(code, vars(made))
    return made


@pytest.mark.parametrize("name", ["layout example", "term example", "network example"])
def test_they_pass_as_modules_of_the_package(name):
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "rehearsal_kit/data/name.py", "-"]
    text = block(name) + "\n"
    done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_layout_is_recognised_and_read(tmp_path, monkeypatch):
    layout = module(block("layout example"), monkeypatch)
    entry = Layout("counts", layout.recognises, layout.describe)
    monkeypatch.setattr(opening, "LAYOUTS", {**opening.LAYOUTS, "NAME": entry})
    counts = np.random.default_rng(0).poisson(5, (9, 16, 16)).astype(np.uint16)
    centres = np.stack(np.meshgrid(*[np.arange(10, 25, 5)] * 2), axis=-1).reshape(9, 2)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["counts"], file["centres"] = counts, centres
        file["object"] = np.ones((40, 50), np.complex64)
    scan = open_scan(tmp_path / "scan.h5")
    assert (scan.layout, scan.object_shape, len(scan)) == ("NAME", (40, 50), 9)
    assert np.array_equal(scan.positions_px, centres)
    assert np.array_equal(scan.frames(range(9)), counts)


def test_network_and_strategy_train(monkeypatch):
    perceptron = module(block("network example"), monkeypatch).Perceptron
    strategy = module(block("term example"), monkeypatch).Halved()
    before = torch.get_rng_state()
    network = perceptron(classes=4, seed=3)
    assert isinstance(network, Network)
    assert torch.equal(torch.get_rng_state(), before)
    again = perceptron(**network.arguments)
    assert all(map(torch.equal, network.parameters(), again.parameters()))
    new, replayed = (
        {"image": torch.rand(size, 1, 28, 28), "label": torch.arange(size) % 4} for size in (5, 3)
    )
    learner = Learner(network, Training(), device="cpu", groups=ProcessGroups(0, 1))
    learner.know(learner.meet(new, "image"))
    stepped = learner.step(MiniBatch(new, replayed, {}), strategy=strategy)
    losses = [
        torch.nn.functional.cross_entropy(again(part["image"])["label"], part["label"]).item()
        for part in (new, replayed)
    ]
    assert stepped.terms == pytest.approx({"new": losses[0], "replay": losses[1] / 2})
