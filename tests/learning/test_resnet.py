"""The image classifiers: ResNet and ConvNet."""

import pytest
import torch
from torch.nn import functional

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.networks.resnet import ResNet

SMALL = {"classes": 4, "width": 4, "stem": "small"}


def batch_norm(values, layer):
    """Over samples, rows and columns, as while training: written out."""
    mean = values.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((values - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    normal = (values - mean) / torch.sqrt(variance + 1e-5)
    return normal * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)


# ResNet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "parameters", "entries"), [(18, 11_689_512, 122), (50, 25_557_032, 320)], ids=["18", "50"]
)
def test_published_weights_fit(depth, parameters, entries):
    network = ResNet(depth=depth)
    state = {name: tuple(values.shape) for name, values in network.state_dict().items()}
    assert sum(weights.numel() for weights in network.parameters()) == parameters
    assert len(state) == entries
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["bn1.num_batches_tracked"] == ()
    assert state["fc.bias"] == (1000,)
    if depth == 18:
        assert state["layer1.1.conv2.weight"] == (64, 64, 3, 3)
        assert state["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
        assert state["layer4.0.downsample.1.running_var"] == (512,)
        assert state["fc.weight"] == (1000, 512)
    else:
        assert state["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
        assert state["layer3.5.bn3.running_mean"] == (1024,)
        assert state["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
        assert network.layer4[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(("stem", "rows"), [("imagenet", (16, 16, 8, 4, 2)), ("small", (64, 64, 32, 16, 8))])
@pytest.mark.parametrize("depth", [18, 50])
def test_stems_and_stages_shrink_the_image(depth, stem, rows):
    network = ResNet(depth=depth, classes=7, channels=5, width=4, stem=stem)
    seen = []
    for part in (network.maxpool, network.layer1, network.layer2, network.layer3, network.layer4):
        part.register_forward_hook(lambda _part, _inputs, features: seen.append(features.shape[2]))
    outputs = network(torch.rand(2, 5, 64, 48))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"label": (2, 7)}
    assert tuple(seen) == rows


@pytest.mark.parametrize("stage", ["layer1", "layer2"])
def test_a_basic_block_is_the_plain_computation(stage):
    block = getattr(ResNet(**SMALL), stage)[0]
    features = torch.randn(3, 4, 8, 8)
    stride = 2 if stage == "layer2" else 1
    for layer in (block.bn1, block.bn2):
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    inner = functional.conv2d(features, block.conv1.weight, stride=stride, padding=1)
    inner = batch_norm(inner, block.bn1).clamp(min=0)
    residual = batch_norm(functional.conv2d(inner, block.conv2.weight, padding=1), block.bn2)
    shortcut = features
    if stage == "layer2":
        shortcut = functional.conv2d(features, block.downsample[0].weight, stride=2)
        shortcut = batch_norm(shortcut, block.downsample[1])
    torch.testing.assert_close(block(features), (residual + shortcut).clamp(min=0))


def test_a_bottleneck_is_the_plain_computation():
    block = ResNet(depth=50, **SMALL).layer2[0]
    features = torch.randn(3, 16, 8, 8)
    inner = batch_norm(functional.conv2d(features, block.conv1.weight), block.bn1).clamp(min=0)
    inner = functional.conv2d(inner, block.conv2.weight, stride=2, padding=1)
    inner = batch_norm(inner, block.bn2).clamp(min=0)
    residual = batch_norm(functional.conv2d(inner, block.conv3.weight), block.bn3)
    shortcut = functional.conv2d(features, block.downsample[0].weight, stride=2)
    shortcut = batch_norm(shortcut, block.downsample[1])
    torch.testing.assert_close(block(features), (residual + shortcut).clamp(min=0))


def test_convolutions_begin_with_hes_variance():
    weights = ResNet(seed=2).layer4[0].conv1.weight
    assert weights.shape[:2] == (512, 256)
    assert weights.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


# Both -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [ResNet(**SMALL), ResNet(depth=50, **SMALL), ConvNet(channels=3, width=4)],
    ids=["ResNet 18", "ResNet 50", "ConvNet"],
)
def test_gradients_reach_every_parameter(network):
    labels = torch.arange(4)
    functional.cross_entropy(network(torch.rand(4, 3, 16, 16))["label"], labels).backward()
    assert [name for name, weights in network.named_parameters() if not weights.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ResNet, {"depth": 18, "classes": 3, "channels": 2, "width": 4, "stem": "small", "seed": 4}),
        (ConvNet, {"classes": 3, "channels": 2, "width": 4, "seed": 4}),
    ],
)
def test_weights_depend_on_the_seed_alone_and_the_callers_generator_is_left_alone(kind, arguments):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = kind(**arguments)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again, other = kind(**first.arguments), kind(**{**arguments, "seed": 5})
    assert again.arguments == arguments
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", [ResNet, ConvNet])
@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 16, 16), (2, 3, 16)])
def test_images_of_another_shape_are_refused(kind, shape):
    with pytest.raises(SettingsError, match=r"image has shape .*\(sample, 3, row, column\)"):
        kind(channels=3, width=4)(torch.rand(shape))


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ResNet, {"depth": 34}),
        (ResNet, {"classes": 0}),
        (ResNet, {"channels": 1.5}),
        (ResNet, {"width": 0}),
        (ResNet, {"stem": "large"}),
        (ResNet, {"seed": -1}),
        (ConvNet, {"classes": 0}),
        (ConvNet, {"channels": 0}),
        (ConvNet, {"width": True}),
        (ConvNet, {"seed": -1}),
    ],
)
def test_settings_are_checked(kind, wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        kind(**wrong)


# ConvNet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(28, 28), (32, 20), (8, 9)])
def test_convnet_takes_images_of_any_size(sides):
    outputs = ConvNet(classes=7, channels=2, width=4)(torch.rand(3, 2, *sides))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {"label": (3, 7)}


def test_convnet_refuses_images_that_its_pools_would_empty():
    with pytest.raises(SettingsError, match="8 or more rows"):
        ConvNet()(torch.rand(2, 1, 7, 28))


def test_convnet_is_the_plain_computation():
    network = ConvNet(channels=2, width=4)
    features = image = torch.rand(3, 2, 48, 48)
    for layer in (part for part in network.features if isinstance(part, torch.nn.Conv2d)):
        features = functional.conv2d(features, layer.weight, layer.bias, padding=1).clamp(min=0)
        features = functional.max_pool2d(features, 2)
    features = functional.avg_pool2d(features, 2)
    logits = features.reshape(3, -1) @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(image)["label"], logits)


def test_convnet_judges_each_sample_alone():
    network, images = ConvNet(width=4), torch.rand(4, 1, 28, 28)
    together = network(images)["label"]
    torch.testing.assert_close(together[1:2], network(images[1:2])["label"])
