"""All that training changes on one rank: weights and optimizer, kept, gone back to, stored and read again."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rehearsal_kit.base.settings import Training
from rehearsal_kit.base.tensor_fingerprint import tensor_fingerprint


class LearnerState:
    """A network and its optimizer, as they are now and as they were when they were last kept.

    network: with its initial weights, on the device on which it is trained.
    """

    def __init__(self, network: torch.nn.Module, training: Training) -> None:
        self.network = network
        self._training = training
        self._optimizer: torch.optim.Optimizer | None = None
        self._initial = copy.deepcopy(network.state_dict())
        self._kept: tuple[dict[str, Any], dict[str, Any]] | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer. Its learning rate is given anew at every step, and so is none of this state.

        Made once somebody asks for it: the first of a process imports a compiler, which takes seconds.
        """
        if self._optimizer is None:
            self._optimizer = self._new_optimizer()
        return self._optimizer

    def restart(self) -> None:
        """Back to the initial weights, with a fresh optimizer."""
        self.network.load_state_dict(self._initial)
        self._optimizer = None

    def keep(self) -> None:
        """Remember weights and optimizer as they are now, for `go_back`."""
        self._kept = copy.deepcopy((self.network.state_dict(), self.optimizer.state_dict()))

    def go_back(self) -> None:
        """Weights and optimizer as they were when `keep` was called."""
        assert self._kept is not None  # noqa: S101 - for the type checker; every task begins with keep()
        weights, optimizer = copy.deepcopy(self._kept)
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """The initial weights for as long as the block runs."""
        weights = copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(self._initial)
        try:
            yield
        finally:
            self.network.load_state_dict(weights)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers, on the CPU: copies, so that also tied ones can be written."""
        return _copies(self.network.state_dict())

    def fingerprint(self) -> str:
        """Fingerprint of the weights: equal on two ranks exactly when they hold the same numbers."""
        return tensor_fingerprint(self.network.state_dict())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name, on the CPU: copies. For `adopt`."""
        states = {"now": (self.network.state_dict(), self.optimizer.state_dict())}
        if self._kept is not None:
            states["kept"] = self._kept
        return {
            f"{which}.{name}": tensor
            for which, (weights, optimizer) in states.items()
            for name, tensor in _copies(_flat(weights, optimizer)).items()
        }

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on where `tensors` was called."""
        self._optimizer = None
        weights, optimizer = _unflat(_under("now.", tensors), self.optimizer.state_dict())
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        kept = _under("kept.", tensors)
        self._kept = _unflat(kept, self.optimizer.state_dict()) if kept else None

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = self._training.learning_rate, self._training.weight_decay
        match self._training.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _flat(weights: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    named = {f"weights.{name}": tensor for name, tensor in weights.items()}
    for number, values in optimizer["state"].items():
        named |= {f"optimizer.{number}.{n}": v for n, v in values.items() if isinstance(v, torch.Tensor)}
    return named


def _unflat(
    tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and state of the optimizer; its groups are those of the one that is given."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        number, _, value = name.partition(".")
        state.setdefault(int(number), {})[value] = tensor.clone()
    groups = {"state": state, "param_groups": optimizer["param_groups"]}
    return {name: tensor.clone() for name, tensor in _under("weights.", tensors).items()}, groups


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
