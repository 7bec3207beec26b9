"""Networks with samples to train them on, for steps of a wanted length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.networks.resnet import ResNet

CLASSES = 1000


class Subject(Protocol):
    """A network and its samples."""

    @property
    def family(self) -> str:
        """The network, whatever its size."""

    @property
    def name(self) -> str:
        """Network and size."""

    @property
    def inputs(self) -> str:
        """The field that goes into the network."""

    def build(self) -> nn.Module:
        """The network."""

    def samples(self, count: int) -> dict[str, Tensor]:
        """Random samples: named tensors (sample, ...)."""


@dataclass(frozen=True)
class Ptychography:
    """PtychoNN on square images of `side` pixels."""

    size: str
    side: int
    family = "PtychoNN"
    inputs = "diffraction"

    @property
    def name(self) -> str:
        """Network and size."""
        return f"PtychoNN {self.size}, {self.side} x {self.side}"

    def build(self) -> nn.Module:
        """The network."""
        return PtychoNN(size=self.size)

    def samples(self, count: int) -> dict[str, Tensor]:
        """Random samples: named tensors (sample, 1, row, column)."""
        names = ("diffraction", "amplitude", "phase")
        return {name: torch.rand(count, 1, self.side, self.side) for name in names}


@dataclass(frozen=True)
class ResNet18:
    """ResNet-18 on square colour images of `side` pixels, for 1000 classes."""

    side: int
    width: int = 64
    """Channels of its first blocks; that of the paper's network where nothing else is said."""
    family = "ResNet-18"
    inputs = "image"

    @property
    def name(self) -> str:
        """Network and size."""
        narrow = "" if self.width == 64 else f" of width {self.width}"
        return f"ResNet-18{narrow}, 3 x {self.side} x {self.side}"

    def build(self) -> nn.Module:
        """The network."""
        return ResNet(depth=18, classes=CLASSES, width=self.width)

    def samples(self, count: int) -> dict[str, Tensor]:
        """Random samples: image (sample, 3, row, column) and label (sample,)."""
        image = torch.rand(count, 3, self.side, self.side)
        return {"image": image, "label": torch.randint(CLASSES, (count,))}


ON_CPU: tuple[Subject, ...] = (
    *(Ptychography("small", side) for side in (16, 24, 32, 48, 64, 96, 128)),
    *(Ptychography("original", side) for side in (64, 96, 128)),
)
"""Ever longer steps of PtychoNN, from which the first that is long enough is taken."""
ON_CUDA: tuple[Subject, ...] = tuple(Ptychography("paper", side) for side in (64, 96, 128, 192, 256, 384))
RESNET_ON_CUDA: tuple[Subject, ...] = tuple(ResNet18(side) for side in (224, 320, 448, 640, 896))
