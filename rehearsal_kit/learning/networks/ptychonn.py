"""PtychoNN: from one diffraction pattern to the amplitude and phase of the sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.limits import require_integer
from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.learning.repeatable_layers import BilinearDoubling

_CHANNELS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "small": ((12, 32), (32, 16)),
    "original": ((32, 64, 128), (128, 64, 64)),
    "paper": ((32, 64, 128, 256), (256, 128, 64, 32)),
}
"""Channels after each block of the encoder and of each decoder."""


class PtychoNN(nn.Module):
    """One encoder and two decoders that share it, one for the amplitude and one for the phase.

    A block is two 3 x 3 convolutions with ReLU and a 2 x 2 maximum pool (encoder) or a bilinear doubling
    (decoders). The amplitude's last convolution is linear; the phase's goes through pi tanh.

    Args:
        size: "small", two blocks, for CPUs; "original", the three blocks of Cherukara et al., "AI-enabled
            high-resolution scanning coherent diffraction imaging", Appl. Phys. Lett. 117, 044103 (2020);
            "paper", the four blocks (4,694,690 parameters) that Bouvier et al. trained with rehearsal, Future
            Generation Computer Systems 162, 107438 (2025).
        seed: the weights depend on it and on `size` alone; torch's own generator is left as it was.

    Raises:
        SettingsError: a size or seed outside what is allowed.
    """

    def __init__(self, *, size: str = "small", seed: int = 0) -> None:
        super().__init__()
        if size not in _CHANNELS:
            raise SettingsError(f"size of PtychoNN is {size!r}; it must be one of {', '.join(_CHANNELS)}.")
        seed = require_integer("seed", seed, low=0)
        self.arguments: Mapping[str, str | int] = {"size": size, "seed": seed}
        down, up = _CHANNELS[size]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "PtychoNN"))
            self.encoder = _blocks((1, *down), nn.MaxPool2d(2))
            self.amplitude = _decoder((down[-1], *up))
            self.phase = _decoder((down[-1], *up))
            for part in self.modules():
                # He's initialisation: torch's own lets the signal fade over so many layers without
                # normalisation, and short runs then stay at the median of their targets.
                if isinstance(part, nn.Conv2d) and part.out_channels > 1 and part.bias is not None:
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                    nn.init.zeros_(part.bias)
            # Targets have median amplitude 1 and mean phase 0.
            for decoder, median in ((self.amplitude, 1.0), (self.phase, 0.0)):
                head = decoder[-1]
                if isinstance(head, nn.Conv2d) and head.bias is not None:
                    nn.init.constant_(head.bias, median)

    def forward(self, diffraction: Tensor) -> dict[str, Tensor]:
        """Prepared patterns (sample, 1, row, column) to "amplitude" and "phase" in rad, of the same shape.

        Raises:
            SettingsError: rows or columns that the pools cannot halve to the end.
        """
        multiple = 2 ** len(self.encoder)
        sides = diffraction.shape[2:]
        if diffraction.ndim != 4 or diffraction.shape[1] != 1 or any(side % multiple for side in sides):
            raise SettingsError(
                f"diffraction has shape {tuple(diffraction.shape)}; PtychoNN {self.arguments['size']!r} "
                f"needs (sample, 1, row, column) with rows and columns multiples of {multiple}."
            )
        code = self.encoder(diffraction)
        return {"amplitude": self.amplitude(code), "phase": math.pi * torch.tanh(self.phase(code))}


def _blocks(channels: Sequence[int], resize: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.ReLU(),
                resize,
            )
            for before, after in pairwise(channels)
        )
    )


def _decoder(channels: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(_blocks(channels, BilinearDoubling()), nn.Conv2d(channels[-1], 1, 3, padding=1))
