"""Networks with samples to train them on, for steps of a wanted length."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rehearsal_kit.networks.ptychonn import PtychoNN
from rehearsal_kit.strategies import ER, Strategy, Tensors

CLASSES = 1000
_REPLAY = ER()


class Subject(Protocol):
    """A network, its samples and its loss."""

    @property
    def family(self) -> str:
        """The network, whatever its size."""

    @property
    def name(self) -> str:
        """Network and size."""

    @property
    def inputs(self) -> str:
        """The field that goes into the network."""

    @property
    def strategy(self) -> Strategy:
        """That knows the loss."""

    def build(self) -> nn.Module:
        """The network; ImportError if something for it is not installed."""

    def samples(self, count: int) -> dict[str, Tensor]:
        """Random samples: named tensors (sample, ...)."""


@dataclass(frozen=True)
class Ptychography:
    """PtychoNN on square images of `side` pixels."""

    size: str
    side: int
    family = "PtychoNN"
    inputs = "diffraction"
    strategy: Strategy = _REPLAY

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
class Classification:
    """Experience replay with the cross-entropy of one label."""

    rehearses = True
    restarts = False

    def tasks(self, newest: int) -> range:
        """The newest one only."""
        return range(newest, newest + 1)

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensor:
        """Of each sample: (sample,)."""
        return nn.functional.cross_entropy(outputs["label"], targets["label"], reduction="none")


_CLASSIFICATION = Classification()


@dataclass(frozen=True)
class ResNet18:
    """torchvision's ResNet-18 on square colour images of `side` pixels, without pretrained weights."""

    side: int
    family = "ResNet-18"
    inputs = "image"
    strategy: Strategy = _CLASSIFICATION

    @property
    def name(self) -> str:
        """Network and size."""
        return f"ResNet-18, 3 x {self.side} x {self.side}"

    def build(self) -> nn.Module:
        """The network; ImportError unless torchvision is installed in a build that fits torch."""
        try:
            models = importlib.import_module("torchvision.models")
        except RuntimeError as error:  # a build for another torch: its compiled operators are missing
            raise ImportError(f"torchvision does not fit this torch: {error}") from error
        return _Labelled(models.resnet18(weights=None, num_classes=CLASSES))

    def samples(self, count: int) -> dict[str, Tensor]:
        """Random samples: image (sample, 3, row, column) and label (sample,)."""
        image = torch.rand(count, 3, self.side, self.side)
        return {"image": image, "label": torch.randint(CLASSES, (count,))}


class _Labelled(nn.Module):
    # A classifier whose output has the name of its target.
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"label": self.classifier(image)}


ON_CPU: tuple[Subject, ...] = (
    *(Ptychography("small", side) for side in (16, 24, 32, 48, 64, 96, 128)),
    *(Ptychography("original", side) for side in (64, 96, 128)),
)
"""Ever longer steps of PtychoNN, from which the first that is long enough is taken."""
ON_CUDA: tuple[Subject, ...] = tuple(Ptychography("paper", side) for side in (64, 96, 128, 192, 256, 384))
RESNET_ON_CUDA: tuple[Subject, ...] = tuple(ResNet18(side) for side in (224, 320, 448, 640, 896))
