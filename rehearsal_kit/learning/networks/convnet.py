"""ConvNet: a small classifier of images, for CPUs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.learning.repeatable_layers import RegionMeans


class ConvNet(nn.Module):
    """Three 3 x 3 convolutions, each with ReLU and a 2 x 2 maximum pool, and one linear layer.

    What the last pool leaves of an image, 3 x 3 if it has 28 x 28 pixels, is averaged over 3 x 3 regions, so
    that other sizes fit too. Nothing is normalised over the mini-batch: a sample's output does not depend on
    the others.

    Args:
        classes: length of the output.
        channels: of the images.
        width: channels of the first convolution; the others have twice and four times as many.
        seed: the weights depend on it and on the other arguments alone; torch's own generator is left as it
            was.

    Raises:
        SettingsError: an argument outside what is allowed.
    """

    def __init__(self, *, classes: int = 10, channels: int = 1, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        classes = require_integer("classes", classes, low=1)
        channels = require_integer("channels", channels, low=1)
        width = require_integer("width", width, low=1)
        sizes = {"classes": classes, "channels": channels, "width": width}
        seed = require_integer("seed", seed, low=0)
        self.arguments: Mapping[str, int] = {**sizes, "seed": seed}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "ConvNet"))
            self.features = nn.Sequential(
                *_block(channels, width),
                *_block(width, 2 * width),
                *_block(2 * width, 4 * width),
                RegionMeans(3),
                nn.Flatten(),
            )
            self.head = nn.Linear(9 * 4 * width, classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Images float32 (sample, channel, row, column) to "label", the logits float32 (sample, class).

        Raises:
            SettingsError: another number of axes or channels, or fewer than 8 rows or columns.
        """
        channels = self.arguments["channels"]
        if image.ndim != 4 or image.shape[1] != channels or min(image.shape[2:]) < 8:
            raise SettingsError(
                f"image has shape {tuple(image.shape)}; this ConvNet needs (sample, {channels}, row, column) "
                "with 8 or more rows and columns: reshape or pad the images, or build it with their number "
                "of channels."
            )
        return {"label": self.head(self.features(image))}


def _block(before: int, after: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, padding=1)
    # He's initialisation: torch's own gives smaller weights, and training starts more slowly.
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    # On one CPU thread a training step takes a third less time in this memory format.
    convolution.weight = nn.Parameter(convolution.weight.detach().to(memory_format=torch.channels_last))
    # ReLU and maximum commute, and after the pool there is a quarter of the work.
    return convolution, nn.MaxPool2d(2), nn.ReLU()
