"""Network and optimizer on one rank: one step, one evaluation."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rehearsal_kit.base.errors import RankError, TaskError, said
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.forward_pass import ForwardPass, MiniBatch
from rehearsal_kit.learning.joint_step import JointStep, Stepped
from rehearsal_kit.learning.metrics import Scores, TaskMetrics
from rehearsal_kit.learning.module_state import count_of, shaped_as
from rehearsal_kit.learning.signature import Signature, targets_of
from rehearsal_kit.learning.strategies.strategy import Strategy


class Learner:
    """Data-parallel training of one network: all ranks hold the same weights after every step.

    network: maps the input (sample, ...) to a dictionary of outputs, each (sample, ...), or to one tensor
    where there is one target. Outputs meet targets by name.
    """

    def __init__(
        self, network: torch.nn.Module, training: Training, *, device: str, groups: ProcessGroups
    ) -> None:
        self.network = network.to(device)
        self.device = device
        self.signature: Signature | None = None
        """None until a first task was met."""
        self.training = training
        """How the next step is taken; what of it may be steered can be changed between two steps."""
        self.calls = 0
        """Steps and predictions so far; grows while this learner gets on."""
        self._groups = groups
        self._forward = ForwardPass(self.network, device=device, precision=training.precision)
        self._steps = JointStep(self.network, self._forward, device=device, groups=groups)
        self._initial = copy.deepcopy(self.network.state_dict())
        self._optimizer = self._new_optimizer()
        self._kept: tuple[dict[str, Any], dict[str, Any]] | None = None

    def meet(self, samples: Samples, inputs: str) -> Signature:
        """What goes into the network and comes out, by trying it on one sample; changes no state.

        The caller makes it the learner's `signature` once all ranks have found the same. samples: of the
        first task, (sample, ...), possibly none on this rank. Raises TaskError if outputs and targets do
        not meet, SettingsError if the network returns anything else than tensors.
        """
        some = samples[inputs][:2]
        if len(some) < 2:  # two: what has as many is per sample, and what has not is not
            shape = (2, *some.shape[1:])
            some = some.expand(shape) if len(some) else torch.zeros(shape, dtype=some.dtype)
        outputs = self._forward.predict(some, [*targets_of(samples, inputs)])
        return Signature.of(samples, outputs, inputs=inputs)

    def restart(self) -> None:
        """Back to the initial weights, with a fresh optimizer."""
        self.network.load_state_dict(self._initial)
        self._optimizer = self._new_optimizer()

    def keep(self) -> None:
        """Remember weights and optimizer as they are now, for `go_back`."""
        self._kept = copy.deepcopy((self.network.state_dict(), self._optimizer.state_dict()))

    def go_back(self) -> None:
        """Weights and optimizer as they were when `keep` was called."""
        assert self._kept is not None  # noqa: S101 - for the type checker; every task begins with keep()
        weights, optimizer = copy.deepcopy(self._kept)
        self.network.load_state_dict(weights)
        self._optimizer.load_state_dict(optimizer)

    @contextlib.contextmanager
    def untrained(self) -> Iterator[None]:
        """The initial weights for as long as the block runs."""
        weights = copy.deepcopy(self.network.state_dict())
        self.network.load_state_dict(self._initial)
        try:
            yield
        finally:
            self.network.load_state_dict(weights)

    def step(self, batch: MiniBatch, *, strategy: Strategy, factor: float = 1.0, seed: int = 0) -> Stepped:
        """Train on the augmented mini-batches of all ranks, unless their loss is not finite.

        factor: of the schedule, by which the learning rate is multiplied. seed: of whatever is random in the
        forward pass (dropout), on this rank and at this step. Where network or strategy raise on any rank,
        none takes the step and all are told. RankError if no rank has a sample.
        """
        self.calls += 1
        stepped, gradient = self._steps.of(batch, self._known, strategy=strategy, seed=seed)
        if gradient is not None:
            self._apply(gradient, factor)
        return stepped

    def predict(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs on the CPU, float32, for inputs (sample, ...); changes no state."""
        self.calls += 1
        outputs = self._forward.predict(inputs, [*self._known.kinds])
        return {name: tensor.float().cpu() for name, tensor in outputs.items()}

    def metrics(self, batches: Iterable[Samples]) -> Scores:
        """Errors and metrics over the batches of all ranks; changes no state.

        TaskError on all ranks alike where the network, or the reading of a batch, fails on any of them.
        """
        metrics, trouble = TaskMetrics(self._known.kinds), ""
        try:
            for batch in batches:
                metrics.add(self.predict(batch[self._known.inputs]), batch)
        except Exception as error:  # the other ranks must learn of it, not wait for this one
            trouble = f"{said(error)} (rank {self._groups.rank})"
        if reason := self._groups.first_trouble(trouble):
            raise TaskError(reason)
        return metrics.over_all(self._groups)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers, on the CPU: copies, so that also tied ones can be written."""
        return {name: t.detach().cpu().clone().contiguous() for name, t in self.network.state_dict().items()}

    def fingerprint(self) -> str:
        """Fingerprint of the weights: equal on two ranks exactly when they hold the same numbers."""
        seen = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            seen.update(name.encode())
            seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return seen.hexdigest()[:16]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that training has changed, by name, on the CPU: copies. For `adopt`."""
        states = {"now": (self.network.state_dict(), self._optimizer.state_dict())}
        if self._kept is not None:
            states["kept"] = self._kept
        return {
            f"{which}.{name}": tensor.detach().cpu().clone().contiguous()
            for which, (weights, optimizer) in states.items()
            for name, tensor in _flat(weights, optimizer).items()
        }

    def adopt(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on where `tensors` was called."""
        weights, optimizer = _unflat(_under("now.", tensors), self._optimizer.state_dict())
        self.network.load_state_dict(weights)
        self._optimizer = self._new_optimizer()
        self._optimizer.load_state_dict(optimizer)
        kept = _under("kept.", tensors)
        self._kept = _unflat(kept, self._optimizer.state_dict()) if kept else None

    @property
    def _known(self) -> Signature:
        if self.signature is None:
            raise RankError("the learner was used before it met its first task.")
        return self.signature

    def _apply(self, gradient: torch.Tensor, factor: float) -> None:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        for parameter, part in zip(parameters, gradient.split([*map(count_of, parameters)]), strict=True):
            parameter.grad = shaped_as(parameter, part)
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.training.learning_rate * factor
        self._optimizer.step()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = self.training.learning_rate, self.training.weight_decay
        match self.training.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


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
