"""Layers whose way back computes the same bits each time on a GPU, where torch's own do not.

They are torch's own, by name, arguments and numbers, and compute as these do on a CPU, bit for bit, and
wherever nobody asks for the same bits each time (`torch.use_deterministic_algorithms`): one operation then
takes less time on a GPU than several.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BilinearDoubling(nn.Upsample):
    """Images (sample, channel, row, column) with twice as many rows and columns, by bilinear interpolation.

    As `nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)`, whose gradient is added up on a
    GPU in the order in which threads come by; or, where deterministic algorithms are asked for, by sorting
    the indices of all pixels.
    """

    def __init__(self) -> None:
        super().__init__(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Images (sample, channel, row, column) doubled along the last two axes."""
        return doubled(input) if _repeats(input) else super().forward(input)


class RegionMeans(nn.AdaptiveAvgPool2d):
    """The means over `output_size` x `output_size` regions of images (sample, channel, row, column).

    As `nn.AdaptiveAvgPool2d`, whose gradient is added up on a GPU in the order in which threads come by.
    Regions overlap where rows or columns cannot be divided.
    """

    output_size: int

    def __init__(self, output_size: int) -> None:
        super().__init__(output_size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """The means over regions of the last two axes of images (sample, channel, row, column)."""
        return region_means(input, self.output_size) if _repeats(input) else super().forward(input)


def doubled(images: Tensor) -> Tensor:
    """Images with twice as many rows and columns, from sums of shifted copies.

    So no two threads add to one number, neither there nor on the way back. A new pixel lies a quarter of a
    pixel beside an old one: it is three quarters of that and one of the next, which at a border is the same.
    They lie in memory as the images do, by channels or not: else whatever comes next would turn them around.
    """
    if images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last):
        return _doubled_along(_doubled_along(images, 2), 3)
    return _doubled_along(_doubled_along(images.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)


def region_means(images: Tensor, regions: int) -> Tensor:
    """The means over `regions` x `regions` regions of images (sample, channel, row, column), each a slice."""
    rows, columns = (_borders(size, regions) for size in images.shape[2:])
    means = [
        images[:, :, top:bottom, left:right].mean(dim=(2, 3))
        for top, bottom in rows
        for left, right in columns
    ]
    return torch.stack(means, dim=2).reshape(*images.shape[:2], regions, regions)


def _repeats(images: Tensor) -> bool:
    return images.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def _doubled_along(images: Tensor, axis: int) -> Tensor:
    others = images.shape[axis] - 1
    before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, others)], axis)
    after = torch.cat([images.narrow(axis, 1, others), images.narrow(axis, others, 1)], axis)
    pairs = torch.stack([images.lerp(before, 0.25), images.lerp(after, 0.25)], axis + 1)
    return pairs.flatten(axis, axis + 1)


def _borders(size: int, regions: int) -> list[tuple[int, int]]:
    """Where each region begins and ends along an axis, as torch cuts them."""
    return [(place * size // regions, -(-(place + 1) * size // regions)) for place in range(regions)]
