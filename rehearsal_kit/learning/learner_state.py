"""All that training changes on one rank: weights, their averages, optimizer; kept, gone back to, stored."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from rehearsal_kit.base.settings import Training
from rehearsal_kit.base.tensor_fingerprint import tensor_fingerprint, tensor_sums
from rehearsal_kit.base.transfers import fetched
from rehearsal_kit.learning.memory_format import is_dense, laid_out_as
from rehearsal_kit.learning.weight_average import WeightAverage

AVERAGE, PLASTIC = "average", "plastic"
"""Names of the averages of the weights in what is stored: of the one that predicts, and the quicker one."""
_State = tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, torch.Tensor]]]
"""States of network and optimizer, and of each average of the weights that is kept, by its name."""
Copied = Callable[[], dict[str, torch.Tensor]]
"""Gives copies in host memory by name, which nobody writes to; it waits for those that are under way."""


class LearnerState:
    """A network, its averages and its optimizer, as they are now and as they were when they were last kept.

    network: with its initial weights, on the device on which it is trained. fused: whether the optimizer is
    to be one that is a single kernel and can leave a step out by itself, where torch has one for its
    parameters.

    What is kept and what is copied lies in host memory: pinned where it comes from a GPU, so that the thread
    that trains waits for neither.
    """

    def __init__(self, network: torch.nn.Module, training: Training, *, fused: bool = False) -> None:
        self.network = network
        self.leaves_out = fused and all(map(_can_be_fused, trained_parameters(network)))
        """Whether the optimizer can leave out a step that the host knows nothing of: see `take`."""
        self._training = training
        self._optimizer: torch.optim.Optimizer | None = None
        self._initial = copy.deepcopy(network.state_dict())
        decays = {AVERAGE: training.average, PLASTIC: training.plastic_average}
        self._averages = {
            name: WeightAverage(self._tensors(), decay=decay)
            for name, decay in decays.items()
            if decay is not None
        }
        self._is_untrained = False
        self._kept: Copied | None = None

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
        for average in self._averages.values():
            average.restart(self._tensors())

    def take(self, *, unless: torch.Tensor | None = None) -> None:
        """Let the optimizer take a step by the gradients that the parameters have.

        unless: float32 () on the device: where it is 1, weights and optimizer stay as they are; only where it
        `leaves_out` steps.
        """
        optimizer: Any = self.optimizer
        if unless is None:
            optimizer.step()
            return
        if isinstance(optimizer, torch.optim.SGD):
            # Else its first step makes them, and where that is left out they are whatever was in memory.
            for parameter in trained_parameters(self.network):
                state = optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
        optimizer.found_inf = unless  # as torch's GradScaler tells it
        optimizer.step()
        del optimizer.found_inf

    def follow(self, *, unless: torch.Tensor | None = None) -> None:
        """The optimizer has taken a step: the averages take in what came of it. unless: as in `take`."""
        for average in self._averages.values():
            average.follow(self._tensors(), unless=unless)

    def forget(self, steps: int) -> None:
        """So many of the newest steps were left out, as the host knows now."""
        for average in self._averages.values():
            average.forget(steps)

    @property
    def average(self) -> Mapping[str, torch.Tensor] | None:
        """The average of the weights, which predicts in their place; None where they predict themselves.

        By name of each place where a parameter or buffer is, for `torch.func.functional_call`.
        """
        return self._placed(AVERAGE)

    @property
    def plastic_average(self) -> Mapping[str, torch.Tensor] | None:
        """The quicker average of the weights, in the same way; None where there is none."""
        return self._placed(PLASTIC)

    def keep(self) -> None:
        """Remember all of it as it is now, for `go_back`."""
        self._kept = _copied(_flat(self._now()))

    def go_back(self) -> None:
        """All of it as it was when `keep` was called."""
        assert self._kept is not None  # noqa: S101 - for the type checker; every task begins with keep()
        self._adopt(_unflat(self._kept(), self.optimizer.state_dict()))

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
        """Fingerprint of the weights and their averages: equal on two ranks that hold the same numbers."""
        return tensor_fingerprint(self._predicting())

    def sums(self) -> str:
        """The same as sums, which take a small part of the time: for ranks that meet between two steps."""
        return tensor_sums(self._predicting())

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name, on the CPU: copies. For `adopt`."""
        return self.copied()()

    def copied(self) -> Copied:
        """The same, under way from here on: another thread may wait for it while the next steps are taken.

        What was kept for `go_back` is not copied once more.
        """
        now, kept = _copied(_flat(self._now())), self._kept

        def arrived() -> dict[str, torch.Tensor]:
            return _named("now.", now()) | ({} if kept is None else _named("kept.", kept()))

        return arrived

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on where `tensors` was called."""
        self._optimizer = None
        self._adopt(_unflat(_under("now.", tensors), self.optimizer.state_dict()))
        kept = _flat(_unflat(_under("kept.", tensors), self.optimizer.state_dict()))
        self._kept = (lambda: kept) if kept else None

    def _adopt(self, state: _State) -> None:
        weights, optimizer, averages = state
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[name] = laid_out_as(parameter, value)
        for name, average in self._averages.items():
            average.adopt(averages[name])

    def _predicting(self) -> dict[str, torch.Tensor]:
        """The weights and their averages, by name."""
        averages = [_named(f".{name}.", self._placed(name) or {}) for name in (AVERAGE, PLASTIC)]
        return {**self.network.state_dict(), **averages[0], **averages[1]}

    def _placed(self, name: str) -> Mapping[str, torch.Tensor] | None:
        """An average by name of each place; None where it is not kept, or nothing is trained."""
        if name not in self._averages or self._is_untrained:
            return None
        places = self._places()
        first, weights = _first_names(places), self._averages[name].weights
        return {name: weights[first[id(tensor)]].to(tensor.dtype) for name, tensor in places.items()}

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

    def _now(self) -> _State:
        """All of it as it lies there, no copies."""
        averages = {name: average.tensors() for name, average in self._averages.items()}
        return self.network.state_dict(), self.optimizer.state_dict(), averages

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = trained_parameters(self.network)
        rate, decay = self._training.learning_rate, self._training.weight_decay
        fused = self.leaves_out or None  # None: as torch chooses
        match self._training.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay, fused=fused)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=fused)
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)


def trained_parameters(network: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those that a step changes, in the order of the network."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _can_be_fused(parameter: torch.nn.Parameter) -> bool:
    # Not dense: its state would lie otherwise.
    return is_dense(parameter) and parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda")


def _first_names(places: dict[str, torch.Tensor]) -> dict[int, str]:
    """The first name of each tensor, by its identity."""
    return {id(tensor): name for name, tensor in reversed(places.items())}


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _copied(tensors: Mapping[str, torch.Tensor]) -> Copied:
    """Copies that are under way from here on."""
    arriving = {name: fetched(tensor.detach()) for name, tensor in tensors.items()}
    return lambda: {name: arrived() for name, arrived in arriving.items()}


def _flat(state: _State) -> dict[str, torch.Tensor]:
    weights, optimizer, averages = state
    named = _named("weights.", weights)
    for name, average in averages.items():
        named |= _named(f"{name}.", average)
    for number, values in optimizer["state"].items():
        named |= {f"optimizer.{number}.{n}": v for n, v in values.items() if isinstance(v, torch.Tensor)}
    return named


def _unflat(tensors: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]) -> _State:
    """Weights, state of the optimizer, whose groups are those of the one that is given, and averages."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer.", tensors).items():
        number, _, value = name.partition(".")
        state.setdefault(int(number), {})[value] = tensor.clone()
    groups = {"state": state, "param_groups": optimizer["param_groups"]}
    weights, average, plastic = (
        {name: tensor.clone() for name, tensor in _under(f"{prefix}.", tensors).items()}
        for prefix in ("weights", AVERAGE, PLASTIC)
    )
    return weights, groups, {AVERAGE: average, PLASTIC: plastic}


def _named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
