"""Network and optimizer on one rank: one step, one evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch

from rehearsal_kit.errors import RankError, SettingsError
from rehearsal_kit.groups import Groups
from rehearsal_kit.quality import FieldErrors
from rehearsal_kit.strategies import Strategy, Tensors


class Learner:
    """Data-parallel training of one network: all ranks hold the same weights after every step.

    network: maps the input (sample, ...) to a dictionary of outputs, each (sample, ...). Outputs meet
    targets by name.
    """

    def __init__(
        self, network: torch.nn.Module, *, learning_rate: float, device: str, groups: Groups
    ) -> None:
        self.network = network.to(device)
        self.device = device
        self._groups = groups
        self._initial = copy.deepcopy(self.network.state_dict())
        self._learning_rate = learning_rate
        self._optimizer = self._new_optimizer()

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = value
        for group in self._optimizer.param_groups:
            group["lr"] = value

    def restart(self) -> None:
        """Back to the initial weights, with a fresh optimizer."""
        self.network.load_state_dict(self._initial)
        self._optimizer = self._new_optimizer()

    def step(self, batch: Tensors, *, strategy: Strategy, inputs: str, seed: int) -> float:
        """Train on the augmented mini-batches of all ranks; returns their mean loss.

        batch: named tensors (sample, ...); may be empty here as long as it is not on every rank.
        inputs: the field that goes into the network.
        seed: of whatever is random in the forward pass (dropout), on this rank and at this step.
        """
        self.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        count = len(batch[inputs])
        total = torch.zeros((), device=self.device)
        if count:
            targets = {name: t.to(self.device) for name, t in batch.items() if name != inputs}
            outputs = self._forward(batch[inputs], seed)
            total = strategy.loss(outputs, targets).sum()
            total.backward()
        return self._apply_mean_gradient(total.detach(), count)

    def predict(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs on the CPU for inputs (sample, ...); changes no state."""
        self.network.eval()
        with torch.no_grad():
            return {name: t.cpu() for name, t in self.network(frames.to(self.device)).items()}

    def errors(self, batches: Iterator[Tensors], *, inputs: str) -> dict[str, float]:
        """Mean absolute error by field over the batches of all ranks; changes no state."""
        collected = FieldErrors()
        for batch in batches:
            collected.add(self.predict(batch[inputs]), batch)
        return collected.over_all(self._groups)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers, on the CPU."""
        return {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()
        }

    def _forward(self, frames: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        devices = [self.device] if self.device != "cpu" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            outputs = self.network(frames.to(self.device))
        if not isinstance(outputs, Mapping):
            raise SettingsError(
                f"the network returned {type(outputs).__name__}; it must return a dictionary of tensors, "
                "named like the targets they are compared with."
            )
        return dict(outputs)

    def _apply_mean_gradient(self, total: torch.Tensor, count: int) -> float:
        # One flat sum for gradients, loss and number of samples. DistributedDataParallel would rebuild its
        # buckets after the first step and add in another order after a restart; this adds in one order.
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        tail = torch.stack([total, torch.full_like(total, count)])
        flat = self._groups.sum(torch.cat([part.flatten() for part in parts] + [tail]))
        loss, samples = (float(v) for v in flat[-2:])
        if not samples:
            raise RankError("a step was taken in which no rank had a sample.")
        if math.isnan(loss):
            raise RankError("the loss became NaN; lower the learning rate, or look at the newest scan.")
        offset = 0
        for parameter in parameters:
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter) / samples
            offset += parameter.numel()
        self._optimizer.step()
        return loss / samples

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self._learning_rate)
