"""ResNet: residual networks that classify images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer, require_one_of
from rehearsal_kit.base.plain_values import plain_value
from rehearsal_kit.base.randomness import torch_seed


class ResNet(nn.Module):
    """He et al., "Deep residual learning for image recognition", CVPR 2016.

    Modules have torchvision's names, and its published weights for ImageNet load as they are. As there, and
    unlike the paper, a bottleneck strides in its 3 x 3 convolution.

    Args:
        depth: 18, of basic blocks (11,689,512 parameters with the other defaults), or 50, of bottlenecks
            (25,557,032).
        classes: length of the output.
        channels: of the images.
        width: channels of the first of the four stages; each further one has twice as many.
        stem: "imagenet", a 7 x 7 convolution and a maximum pool that together quarter rows and columns;
            "small", for images of about 32 pixels (section 4.2 of the paper), a 3 x 3 convolution that keeps
            them.
        seed: the weights depend on it and on the other arguments alone; torch's own generator is left as it
            was.

    Raises:
        SettingsError: an argument outside what is allowed.
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        classes: int = 1000,
        channels: int = 3,
        width: int = 64,
        stem: str = "imagenet",
        seed: int = 0,
    ) -> None:
        super().__init__()
        depth = plain_value(depth)
        if depth not in _STAGES:
            raise SettingsError(f"depth of ResNet is {depth!r}; it must be one of {tuple(_STAGES)}.")
        classes = require_integer("classes", classes, low=1)
        channels = require_integer("channels", channels, low=1)
        width = require_integer("width", width, low=1)
        sizes = {"classes": classes, "channels": channels, "width": width}
        require_one_of("stem", stem, ("imagenet", "small"))
        seed = require_integer("seed", seed, low=0)
        self.arguments: Mapping[str, str | int] = {"depth": depth, **sizes, "stem": stem, "seed": seed}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "ResNet"))
            imagenet = stem == "imagenet"
            self.conv1 = _convolution(channels, width, size=7 if imagenet else 3, stride=2 if imagenet else 1)
            self.bn1 = nn.BatchNorm2d(width)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
            block, counts = _STAGES[depth]
            before = width
            for stage, count in enumerate(counts):
                inner = width * 2**stage
                blocks = []
                for number in range(count):
                    stride = 2 if stage and not number else 1
                    blocks.append(block(before, inner, stride=stride))
                    before = inner * block.expansion
                self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.fc = nn.Linear(before, classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images float32 (sample, channel, row, column) to "label", the logits float32 (sample, class).

        Raises:
            SettingsError: another number of axes or channels.
        """
        channels = self.arguments["channels"]
        if image.ndim != 4 or image.shape[1] != channels:
            raise SettingsError(
                f"image has shape {tuple(image.shape)}; this ResNet needs (sample, {channels}, row, column): "
                "reshape the images, or build it with their number of channels."
            )
        features = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        for stage in range(1, 5):
            features = self.get_submodule(f"layer{stage}")(features)
        return {"label": self.fc(features.mean(dim=(2, 3)))}


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, before: int, inner: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, inner, size=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _convolution(inner, inner, size=3)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = _shortcut(before, inner, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return torch.relu(residual + self.downsample(features))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, before: int, inner: int, *, stride: int) -> None:
        super().__init__()
        after = inner * self.expansion
        self.conv1 = _convolution(before, inner, size=1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _convolution(inner, inner, size=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _convolution(inner, after, size=1)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, features: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(features)))
        residual = torch.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        return torch.relu(residual + self.downsample(features))


_STAGES: Mapping[int, tuple[type[_Basic] | type[_Bottleneck], tuple[int, ...]]] = {
    18: (_Basic, (2, 2, 2, 2)),
    50: (_Bottleneck, (3, 4, 6, 3)),
}
"""Kind of block and number of blocks in each stage, by depth."""


def _convolution(before: int, after: int, *, size: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(_convolution(before, after, size=1, stride=stride), nn.BatchNorm2d(after))
