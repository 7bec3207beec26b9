"""Networks of this package by their public names; whoever looks here imports none of them yet, nor torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that type checkers and editors know them as public names
    from torch import nn

    from rehearsal_kit.learning.networks.convnet import ConvNet as ConvNet
    from rehearsal_kit.learning.networks.ptychonn import PtychoNN as PtychoNN
    from rehearsal_kit.learning.networks.resnet import ResNet as ResNet

NETWORKS: Mapping[str, str] = {
    "ConvNet": "convnet",
    "PtychoNN": "ptychonn",
    "ResNet": "resnet",
}
"""The module of this folder in which each lies. The names stand in run folders, so none may change."""


def network_class(name: str) -> type[nn.Module]:
    """One of them, which offers what `Network` says; KeyError for another name."""
    module = importlib.import_module(f"{__package__}.{NETWORKS[name]}")
    found: type[nn.Module] = getattr(module, name)
    return found
