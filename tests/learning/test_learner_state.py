"""What training changes is copied for a checkpoint, and kept for going back, without holding training up."""

from __future__ import annotations

import copy

import pytest
import torch
from waiting import NoWaiting, place

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.learner_state import LearnerState
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.strategies.references import Incremental

OPTIMIZERS = ("adam", "adamw", "sgd")


def learner_of(network, *, lag=0, **settings):
    training = Training(precision="float32", average=0.9, plastic_average=0.5, **settings)
    learner = Learner(network, training, device="cpu", groups=ProcessGroups(0, 1), lag=lag)
    learner.know(learner.meet(samples(0), "image"))
    return learner


def samples(seed):
    random = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(5, 1, 8, 8, generator=random), "label": torch.arange(5) % 4}


def train(learner, steps):
    for step in steps:
        assert not learner.step(MiniBatch(samples(step), {}, {}), strategy=Incremental(), step=step).trouble


def same(first, second):
    assert list(first) == list(second)  # and so are the bytes of a checkpoint
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_was_copied_is_of_that_moment_however_late_somebody_waits_for_it(optimizer):
    learner = learner_of(ConvNet(classes=4, width=2), optimizer=optimizer)
    train(learner, range(2))
    learner.state.keep()
    train(learner, range(2, 4))
    copied, then = learner.state.copied(), learner.state.tensors()
    train(learner, range(4, 6))
    learner.state.go_back()
    learner.state.keep()
    train(learner, range(6, 8))
    assert same(copied(), then)
    assert not same(learner.state.tensors(), then)


class Fetched(NoWaiting):
    """Counts copies from the device; all have to be asked for where such copies are not waited for."""

    def __init__(self):
        super().__init__("meta")
        self.copies = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function._schema.name.partition("::")[2]
        if name == "copy_" and arguments[1].is_meta and not arguments[0].is_meta:
            assert (place().partition(":")[0], arguments[2:]) == ("base/transfers.py", (True,))
            self.copies += 1
            return arguments[0]
        return super().__torch_dispatch__(function, types, arguments, named)


def test_a_device_is_not_waited_for_and_what_was_kept_is_not_copied_again():
    state = LearnerState(ConvNet(classes=4, width=2).to("meta"), Training(average=0.9), fused=True)
    for parameter in state.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.take()
    state.follow()
    with Fetched() as counted:
        state.keep()
        kept = counted.copies
        told = state.copied()()
    there = [name for name in told if name.startswith("now.") and not name.endswith((".step", ".steps"))]
    assert kept == len(there) > 0  # how many steps there were, the host knows
    assert counted.copies == 2 * kept
    assert len([name for name in told if name.startswith("kept.")]) == len(told) / 2


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fused_optimizer_goes_on_after_a_restart_however_parameters_lie_in_memory(optimizer, kind):
    """Else it refuses: its state has to lie as the parameters do."""
    network = ConvNet(classes=4, width=3).to(memory_format=kind)
    learner, other = (learner_of(copy.deepcopy(network), lag=2, optimizer=optimizer) for _ in range(2))
    train(learner, range(2))
    learner.state.keep()
    other.state.adopt(learner.state.tensors())
    for each in (learner, other):
        assert each.state.leaves_out
        train(each, range(2, 4))
        laid = [
            value.stride() == parameter.stride()
            for parameter, values in each.state.optimizer.state.items()
            for value in values.values()
            if isinstance(value, torch.Tensor) and value.dim()
        ]
        assert laid
        assert all(laid)
    assert same(learner.state.tensors(), other.state.tensors())
    for each in (learner, other):
        each.state.go_back()
        train(each, range(2, 4))
    assert same(learner.state.tensors(), other.state.tensors())
