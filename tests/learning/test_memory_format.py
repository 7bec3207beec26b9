"""Convolutions lie by channels where a GPU computes with short numbers, and gradients as parameters do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.gradient_buckets import GradientBuckets, GradientSum
from rehearsal_kit.learning.joint_step import JointStep
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.learner_state import trained_parameters
from rehearsal_kit.learning.memory_format import is_dense, lay_by_channels, lies_by_channels
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.registry import NETWORKS
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.learning.repeatable_layers import doubled
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import AGEM

CLASSES = 3
OURS = {
    "ConvNet": (lambda: ConvNet(classes=CLASSES, channels=2, width=4), (5, 2, 16, 16)),
    "PtychoNN": (lambda: PtychoNN(size="original"), (2, 1, 16, 16)),
    "ResNet": (lambda: ResNet(depth=18, classes=CLASSES, channels=2, width=8, stem="small"), (4, 2, 16, 16)),
}
ALONE = ProcessGroups(0, 1)


class Taking(nn.Module):
    """A network of others, which takes apart what comes out of a convolution; with one of ours in it."""

    def __init__(self):
        super().__init__()
        self.own = nn.Conv2d(2, 2, 3)
        self.ours = OURS["ResNet"][0]()

    def forward(self, images):
        return self.ours(images)["label"] + self.own(images).view(len(images), -1)[:, :CLASSES]


def by_channels(tensor):
    """Whether it lies so; of a single channel or pixel nobody can tell."""
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("device", "bfloat16", "lies"),
    [("cuda:0", True, True), ("cuda:0", False, False), ("cpu", True, False), ("meta", True, False)],
)
def test_only_a_gpu_that_computes_with_short_numbers_has_them_by_channels(device, bfloat16, lies):
    assert lies_by_channels(device, bfloat16=bfloat16) == lies


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float32"])
def test_on_a_cpu_a_network_lies_as_its_owner_has_it(precision):
    network = OURS["ConvNet"][0]()
    before = [parameter.stride() for parameter in network.parameters()]
    Learner(network, Training(precision=precision), device="cpu", groups=ALONE)
    assert [parameter.stride() for parameter in network.parameters()] == before


@pytest.mark.parametrize("name", OURS)
def test_from_the_first_convolution_to_the_last_no_images_have_to_be_turned_around(name):
    """Images come channel by channel, and are turned around once; of layers for GPUs alone: see below."""
    assert list(OURS) == list(NETWORKS)
    build, shape = OURS[name]
    network = build()
    lay_by_channels(network)
    met = []
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            assert by_channels(part.weight)
            part.register_forward_hook(
                lambda _, inputs, made: met.append([*map(by_channels, (*inputs, made))])
            )
    network(torch.rand(shape))
    assert len(met) > 2
    assert met == [[shape[1] == 1, True], *[[True, True]] * (len(met) - 1)]


@pytest.mark.parametrize("name", OURS)
def test_by_channels_a_network_computes_the_same(name):
    build, shape = OURS[name]
    networks = build(), build()
    lay_by_channels(networks[1])
    told = []
    for network in networks:
        outputs = network(torch.rand(shape, generator=torch.Generator().manual_seed(1)))
        loss = torch.stack([output.square().mean() for output in outputs.values()]).sum()
        told.append([*outputs.values(), *torch.autograd.grad(loss, [*network.parameters()])])
    for one, other in zip(*told, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_networks_of_others_lie_as_their_owners_have_them_and_may_take_images_apart():
    network = Taking()
    lay_by_channels(network)
    assert network.own.weight.is_contiguous()
    assert all(by_channels(w) for w in network.ours.parameters() if w.dim() == 4)
    assert not network.ours.get_parameter("layer1.0.conv1.weight").is_contiguous()
    assert network(torch.rand(2, 2, 16, 16)).shape == (2, CLASSES)


def test_doubling_has_the_same_bits_however_images_lie_and_leaves_them_so():
    images = torch.rand(2, 3, 5, 4)
    turned = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(doubled(images), doubled(turned))
    assert by_channels(doubled(turned))
    assert doubled(images).is_contiguous()


# Gradients -------------------------------------------------------------------------------------------------


def turned(tensor):
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def laid(*, most=None):
    """Parameters that lie in memory in all kinds of ways, and buckets of them in that order."""
    parameters = [
        torch.rand(4, 3, 2, 2),
        turned(torch.rand(4, 3, 2, 2)),
        *(turned(torch.rand(shape)) for shape in ((4, 1, 3, 3), (4, 3, 1, 1))),
        torch.rand(3, 5).t(),
        torch.rand(8, 2)[::2],  # not dense
        torch.rand(7),
    ]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters, GradientBuckets(parameters, device="cpu", most=most, in_memory_order=True)


@pytest.mark.parametrize("most", [None, 40])
def test_what_a_parameter_has_of_a_bucket_has_its_strides_and_is_no_copy(most):
    parameters, buckets = laid(most=most)
    sums = GradientSum(buckets, ALONE, dtype=torch.float32, behind=1)
    sums.compute([torch.stack([(p.square() / 2).sum() for p in parameters]).sum()])
    rows, _ = sums.over_all(torch.zeros(1))
    assert len(rows) == len(buckets.cuts) == (1 if most is None else 5)
    memory = {row.untyped_storage().data_ptr() for row in rows}
    for parameter, gradient in zip(parameters, buckets.shaped(rows), strict=True):
        assert torch.equal(gradient, parameter)
        assert gradient.untyped_storage().data_ptr() in memory
        assert (gradient.stride() == parameter.stride()) == is_dense(parameter)


def gradients_of(network, batch, strategy, *, in_memory_order):
    buckets = GradientBuckets(
        trained_parameters(network), device="cpu", most=200, in_memory_order=in_memory_order
    )
    forward = ForwardPass(network, device="cpu", precision="float32")
    learner = Learner(copy.deepcopy(network), Training(precision="float32"), device="cpu", groups=ALONE)
    signature = learner.meet(batch.new, "image")
    steps = JointStep(network, forward, buckets=buckets, groups=ALONE, asynchronous=False)
    summed = steps.of(batch, signature, strategy=strategy, seed=3)
    assert not summed.read().trouble
    return summed.gradients


@pytest.mark.parametrize("strategy", [Incremental(), AGEM()])
def test_a_step_comes_to_the_same_gradients_in_either_order(strategy):
    network = OURS["ConvNet"][0]()
    lay_by_channels(network)
    random = torch.Generator().manual_seed(1)
    new, replayed = (
        {"image": torch.rand(5, 2, 16, 16, generator=random), "label": torch.arange(5) % CLASSES}
        for _ in range(2)
    )
    batch = MiniBatch(new, replayed if strategy.separate else {}, {})
    told = [
        gradients_of(copy.deepcopy(network), batch, strategy, in_memory_order=each) for each in (True, False)
    ]
    for parameter, one, other in zip(network.parameters(), *told, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == parameter.stride()
