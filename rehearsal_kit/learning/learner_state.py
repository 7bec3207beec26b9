"""All that training changes on one rank: weights, their average, optimizer; kept, gone back to, stored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rehearsal_kit.base.settings import Training
from rehearsal_kit.base.tensor_fingerprint import tensor_fingerprint
from rehearsal_kit.learning.weight_average import WeightAverage

_Kept = tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]
"""States of network and optimizer, and the average of the weights, empty where none is kept."""


class LearnerState:
    """A network, its average and its optimizer, as they are now and as they were when they were last kept.

    network: with its initial weights, on the device on which it is trained.
    """

    def __init__(self, network: torch.nn.Module, training: Training) -> None:
        self.network = network
        self._training = training
        self._optimizer: torch.optim.Optimizer | None = None
        self._initial = copy.deepcopy(network.state_dict())
        self._average = (
            None if training.average is None else WeightAverage(self._tensors(), decay=training.average)
        )
        self._is_untrained = False
        self._kept: _Kept | None = None

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
        if self._average is not None:
            self._average.restart(self._tensors())

    def follow(self) -> None:
        """The optimizer has taken a step: the average takes in what came of it."""
        if self._average is not None:
            self._average.follow(self._tensors())

    @property
    def average(self) -> Mapping[str, torch.Tensor] | None:
        """The average of the weights, which predicts in their place; None where they predict themselves.

        By name of each place where a parameter or buffer is, for `torch.func.functional_call`.
        """
        if self._average is None or self._is_untrained:
            return None
        places = self._places()
        first, weights = _first_names(places), self._average.weights
        return {name: weights[first[id(tensor)]].to(tensor.dtype) for name, tensor in places.items()}

    def keep(self) -> None:
        """Remember all of it as it is now, for `go_back`."""
        self._kept = copy.deepcopy(self._now())

    def go_back(self) -> None:
        """All of it as it was when `keep` was called."""
        assert self._kept is not None  # noqa: S101 - for the type checker; every task begins with keep()
        weights, optimizer, average = copy.deepcopy(self._kept)
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        if self._average is not None:
            self._average.adopt(average)

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """The initial weights for as long as the block runs."""
        weights = copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(self._initial)
        self._is_untrained = True
        try:
            yield
        finally:
            self._is_untrained = False
            self.network.load_state_dict(weights)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers of the network that predicts, on the CPU: copies, also of tied ones."""
        average = self.average
        if average is None:
            return _copies(self.network.state_dict())
        tensors, kept = self._tensors(), _copies(self._tensors())
        with torch.no_grad():  # the network itself names them, as it will when it reads them again
            for name, tensor in tensors.items():
                tensor.copy_(average[name])
            averaged = _copies(self.network.state_dict())
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])
        return averaged

    def fingerprint(self) -> str:
        """Fingerprint of the weights and their average: equal on two ranks that hold the same numbers."""
        return tensor_fingerprint({**self.network.state_dict(), **_named(".average.", self.average or {})})

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name, on the CPU: copies. For `adopt`."""
        states = {"now": self._now()}
        if self._kept is not None:
            states["kept"] = self._kept
        return {
            f"{which}.{name}": tensor
            for which, state in states.items()
            for name, tensor in _copies(_flat(state)).items()
        }

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on where `tensors` was called."""
        self._optimizer = None
        weights, optimizer, average = _unflat(_under("now.", tensors), self.optimizer.state_dict())
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        if self._average is not None:
            self._average.adopt(average)
        kept = _under("kept.", tensors)
        self._kept = _unflat(kept, self.optimizer.state_dict()) if kept else None

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers that belong to the state, each once however many places it has."""
        places = self._places()
        first = _first_names(places)
        return {name: tensor for name, tensor in places.items() if first[id(tensor)] == name}

    def _places(self) -> dict[str, torch.Tensor]:
        """The same by name of each place: of modules with two names only the first is named."""
        return {
            f"{prefix}.{name}" if prefix else name: tensor
            for prefix, module in self.network.named_modules()
            for name, tensor in (
                *module.named_parameters(recurse=False, remove_duplicate=False),
                *module.named_buffers(recurse=False, remove_duplicate=False),
            )
            if name not in module._non_persistent_buffers_set
        }

    def _now(self) -> _Kept:
        average = {} if self._average is None else self._average.tensors()
        return self.network.state_dict(), self.optimizer.state_dict(), average

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = self._training.learning_rate, self._training.weight_decay
        match self._training.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def _first_names(places: dict[str, torch.Tensor]) -> dict[int, str]:
    """The first name of each tensor, by its identity."""
    return {id(tensor): name for name, tensor in reversed(places.items())}


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _flat(state: _Kept) -> dict[str, torch.Tensor]:
    weights, optimizer, average = state
    named = {**_named("weights.", weights), **_named("average.", average)}
    for number, values in optimizer["state"].items():
        named |= {f"optimizer.{number}.{n}": v for n, v in values.items() if isinstance(v, torch.Tensor)}
    return named


def _unflat(tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> _Kept:
    """Weights, state of the optimizer, whose groups are those of the one that is given, and average."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        number, _, value = name.partition(".")
        state.setdefault(int(number), {})[value] = tensor.clone()
    groups = {"state": state, "param_groups": optimizer["param_groups"]}
    weights, average = (
        {name: tensor.clone() for name, tensor in _under(prefix, tensors).items()}
        for prefix in ("weights.", "average.")
    )
    return weights, groups, average


def _named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
