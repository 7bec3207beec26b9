"""An exponential moving average of the weights of a network, which predicts more steadily than they do."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rehearsal_kit.learning.many_tensors import draw_towards, has_mean, overwrite

STEPS = ".steps"
"""The name under which it keeps how many steps it has followed: no weight of any network has such a name."""


class WeightAverage:
    """The average a <- d a + (1 - d) w over the weights w after each step, on the device where they are.

    d is the smaller of `decay` and (1 + n) / (10 + n) after n steps, so that initial weights are soon
    forgotten (Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 3). All
    ranks hold the same weights after every step, and so the same average. Whole numbers, such as counters
    of batch norm, are those of the newest step.

    weights: state of the network, by name.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], *, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._averages: dict[str, torch.Tensor] = {}
        self.restart(weights)

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The average by name of the weight; it changes with the next step."""
        return self._averages

    def restart(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Begin anew with these weights."""
        self._steps = 0
        self._averages = {name: _own(tensor) for name, tensor in weights.items()}

    def follow(self, weights: Mapping[str, torch.Tensor], *, unless: torch.Tensor | None = None) -> None:
        """Take in the weights after one more step.

        unless: float32 () on the device: where it is 1, no step was taken, and the average stays as it is;
        `forget` it once the host knows.
        """
        new = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        followed = {}
        for name, tensor in weights.items():
            if self._averages[name].shape == tensor.shape:
                followed[name] = tensor.detach().to(self._averages[name].dtype)
            else:  # a buffer that grew: its old values are of other places
                self._averages[name] = _own(tensor)
        moving = [name for name, tensor in followed.items() if has_mean(tensor)]
        newest = [followed[name] for name in moving]
        draw_towards([self._averages[name] for name in moving], newest, new, unless=unless)
        counted = [name for name, tensor in followed.items() if not has_mean(tensor)]
        overwrite([self._averages[name] for name in counted], [followed[name] for name in counted])

    def forget(self, steps: int) -> None:
        """So many of the steps that were followed last were not taken."""
        self._steps -= steps

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, for `adopt`; it changes with the next step, but for their number."""
        return {**self._averages, STEPS: torch.tensor(self._steps)}

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on where copies of `tensors` were made."""
        self._steps = int(tensors[STEPS])
        for name, average in self._averages.items():
            average.copy_(tensors[name])


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy; in single precision where the weights are shorter, which a small step would not change."""
    short = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.detach().to(torch.float32 if short else tensor.dtype, copy=True)
