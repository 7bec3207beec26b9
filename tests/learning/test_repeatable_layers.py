"""Networks and losses without operations that a GPU cannot compute with the same bits each time."""

from __future__ import annotations

import pytest
import torch
from operations import Operations, on_the_way
from torch import nn

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import IDENTITY
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.registry import NETWORKS, network_class
from rehearsal_kit.learning.networks.resnet import ResNet
from rehearsal_kit.learning.repeatable_layers import BilinearDoubling, RegionMeans, doubled, region_means
from rehearsal_kit.learning.stored_outputs import with_outputs
from rehearsal_kit.learning.strategies.choice import named_strategy
from rehearsal_kit.learning.strategies.registry import STRATEGIES

SIZES = ((1, 1), (1, 5), (2, 2), (3, 7), (8, 4))


def gradient_of(function, images):
    """What a function makes of images, and the gradient of a sum of that with other weights everywhere."""
    images = images.clone().requires_grad_(True)
    made = function(images)
    weights = torch.linspace(-1, 1, made.numel()).view(made.shape)
    (gradient,) = torch.autograd.grad((made * weights).sum(), images)
    return made, gradient


def images_of(rows, columns):
    random = torch.Generator().manual_seed(100 * rows + columns)
    return torch.randn(2, 3, rows, columns, generator=random)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_doubling_by_shifted_sums_is_bilinear_interpolation(rows, columns):
    images = images_of(rows, columns)
    for ours, torchs in zip(
        gradient_of(doubled, images),
        gradient_of(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), images),
        strict=True,
    ):
        assert ours.shape == torchs.shape
        assert (ours - torchs).abs().max() <= 1e-6


@pytest.mark.parametrize("regions", [1, 2, 3])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_means_over_slices_are_those_over_regions(rows, columns, regions):
    images = images_of(rows, columns)
    for ours, torchs in zip(
        gradient_of(lambda images: region_means(images, regions), images),
        gradient_of(nn.AdaptiveAvgPool2d(regions), images),
        strict=True,
    ):
        assert ours.shape == torchs.shape
        assert (ours - torchs).abs().max() <= 1e-6


@pytest.mark.parametrize("asked", [False, True])
def test_on_a_cpu_the_layers_are_torchs_own_bit_for_bit_whatever_is_asked_for(asked):
    pairs = [(BilinearDoubling(), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))]
    pairs.append((RegionMeans(3), nn.AdaptiveAvgPool2d(3)))
    torch.use_deterministic_algorithms(asked)
    try:
        for ours, torchs in pairs:
            for one, other in zip(
                gradient_of(ours, images_of(5, 7)), gradient_of(torchs, images_of(5, 7)), strict=True
            ):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


SAMPLES = {
    "PtychoNN": [(PtychoNN, {"size": size}, (2, 1, 32, 32)) for size in ("small", "original", "paper")],
    "ConvNet": [(ConvNet, {}, (2, 1, side, side)) for side in (8, 28, 32, 56)],
    "ResNet": [
        (ResNet, {"width": 4, "depth": depth, "stem": stem}, (2, 3, 32, 32))
        for depth in (18, 50)
        for stem in ("small", "imagenet")
    ],
}
"""Networks of ours with the arguments that give them other layers, and the shape of images for them."""


def test_every_network_of_ours_is_looked_at():
    assert SAMPLES.keys() == NETWORKS.keys()
    assert all(kind is network_class(name) for name, cases in SAMPLES.items() for kind, _, _ in cases)


@pytest.mark.parametrize("name", SAMPLES)
def test_networks_of_ours_take_only_operations_that_repeat_their_bits_on_a_gpu(name):
    for kind, arguments, shape in SAMPLES[name]:
        operations = on_the_way(kind(**arguments), torch.rand(shape))
        on_the_way_back = {"convolution": "convolution_backward", "addmm": "mm"}
        met = on_the_way_back.keys() & operations.seen
        assert met
        assert {on_the_way_back[name] for name in met} <= operations.seen
        assert operations.unrepeatable == [], (arguments, shape)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Upsample(scale_factor=2, mode="bicubic"), "upsample_bicubic2d_backward"),
        (nn.AdaptiveAvgPool2d(3), "_adaptive_avg_pool2d_backward"),
        (nn.ReflectionPad2d(1), "reflection_pad2d_backward"),
    ],
)
def test_an_operation_that_does_not_repeat_its_bits_is_found(layer, found):
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), layer)
    assert on_the_way(network, torch.rand(2, 1, 8, 8)).unrepeatable == [found]


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_and_steps_of_ours_take_only_operations_that_repeat_their_bits_on_a_gpu(name):
    strategy = named_strategy(name)
    labels = {"image": torch.rand(4, 1, 8, 8), "label": torch.tensor([0, 1, 2, 3])}
    values = {"image": torch.rand(4, 1, 8, 8), "amplitude": torch.rand(4, 1, 8, 8)}
    values["phase"] = torch.rand(4, 1, 8, 8)
    cases = [(ConvNet(classes=4, width=2), labels)]
    cases += [] if strategy.for_classes else [(PtychoNN(), values)]
    for network, fields in cases:
        samples = {**fields, IDENTITY: torch.arange(4)}
        training = Training(average=0.9, plastic_average=0.5, clip_norm=1.0)
        learner = Learner(network, training, device="cpu", groups=ProcessGroups(0, 1))
        learner.know(learner.meet(samples, "image"))
        stored = with_outputs(samples, learner.predict(samples["image"]), version=0)
        with Operations() as operations:
            stepped = learner.step(
                MiniBatch.augmented(samples, stored, stored, strategy=strategy), strategy=strategy
            )
        assert not stepped.error
        assert "convolution_backward" in operations.seen
        # What the layers of the networks take on a CPU; on a GPU they take others, as is tested above.
        allowed = {"upsample_bilinear2d_backward", "_adaptive_avg_pool2d_backward"}
        assert set(operations.unrepeatable) <= allowed
