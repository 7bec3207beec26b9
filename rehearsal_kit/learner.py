"""Network and optimizer on one rank: one step, one evaluation."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rehearsal_kit.errors import RankError, SettingsError
from rehearsal_kit.groups import Groups
from rehearsal_kit.layout import Samples
from rehearsal_kit.quality import Quality, Scores
from rehearsal_kit.settings import Training
from rehearsal_kit.signature import Signature, targets_of
from rehearsal_kit.stored_outputs import having_outputs, outputs_of, without_outputs
from rehearsal_kit.strategies.losses import Tensors
from rehearsal_kit.strategies.strategy import Part, Strategy, Term


@dataclass(frozen=True)
class MiniBatch:
    """What one rank trains on in one step; each part is named tensors (sample, ...), or empty."""

    new: Samples
    replayed: Samples
    distilled: Samples
    """With their stored outputs."""

    @property
    def parts(self) -> tuple[Samples, Samples, Samples]:
        """In the order in which strategies are given them."""
        return (self.new, self.replayed, self.distilled)


@dataclass(frozen=True)
class Stepped:
    """What a step came to."""

    terms: Mapping[str, float]
    """Each term of the loss over the samples of all ranks, weight included."""
    outputs: Samples
    """What the network, before this step, made of the new samples of this rank: (sample, ...), detached."""
    trouble: str
    """Why no step was taken: a loss or gradient that is not finite; the same on all ranks. Else empty."""
    guilty: bool
    """Whether the loss of this rank's own samples was not finite."""
    busy: tuple[float, ...]
    """Seconds that each rank computed by itself, in order of rank; the rest of a step waits for others."""

    @property
    def loss(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


class Learner:
    """Data-parallel training of one network: all ranks hold the same weights after every step.

    network: maps the input (sample, ...) to a dictionary of outputs, each (sample, ...), or to one tensor
    where there is one target. Outputs meet targets by name.
    """

    def __init__(self, network: torch.nn.Module, training: Training, *, device: str, groups: Groups) -> None:
        self.network = network.to(device)
        self.device = device
        self.signature: Signature | None = None
        """None until a first task was met."""
        self.learning_rate = training.learning_rate
        """Before the schedule; of the next step."""
        self.calls = 0
        """Steps and predictions so far; grows while this learner gets on."""
        self._training = training
        self._groups = groups
        self._initial = copy.deepcopy(self.network.state_dict())
        self._optimizer = self._new_optimizer()
        self._kept: tuple[dict[str, Any], dict[str, Any]] | None = None

    def meet(self, samples: Samples, inputs: str) -> Signature:
        """What goes into the network and comes out, by trying it on one sample; changes no state.

        The caller makes it the learner's `signature` once all ranks have found the same. samples: of the
        first task, (sample, ...), possibly none on this rank. Raises TaskError if outputs and targets do
        not meet, SettingsError if the network returns anything else than tensors.
        """
        some = samples[inputs][:1]
        if not len(some):
            some = torch.zeros(1, *some.shape[1:], dtype=some.dtype)
        self.network.eval()
        with torch.no_grad(), self._precision():
            outputs = _named(self.network(some.to(self.device)), [*targets_of(samples, inputs)])
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
        forward pass (dropout), on this rank and at this step. RankError if no rank has a sample.
        """
        self.calls += 1
        self.network.train()
        began = time.perf_counter()
        new, replayed, distilled = self._forward(batch, apart=strategy.separate, seed=seed)
        terms = strategy.terms(new, replayed, distilled)
        busy = time.perf_counter() - began  # what comes next waits for the other ranks
        scaled, count = self._scaled(terms)
        began = time.perf_counter()
        gradients = self._gradients(scaled if strategy.separate else [torch.stack(scaled).sum()])
        buffers = [b for b in self.network.buffers() if b.is_floating_point()]
        own = torch.stack(scaled).detach()
        parts = [gradients.flatten(), *(b.flatten() / self._groups.ranks for b in buffers), own]
        spent = torch.zeros(self._groups.ranks, device=own.device)
        spent[self._groups.rank] = busy + time.perf_counter() - began
        flat = self._groups.sum(torch.cat([*parts, spent]))
        flat, spent = flat[: -self._groups.ranks], flat[-self._groups.ranks :]
        size = gradients.shape[1]
        summed = flat[: gradients.numel()].view(-1, size)
        gradient = strategy.direction(summed) if strategy.separate else summed[0]
        found = torch.cat([spent, flat[-len(terms) :], torch.stack([gradient.norm(), count])]).tolist()
        seconds, (*values, norm, samples) = found[: self._groups.ranks], found[self._groups.ranks :]
        if not samples:
            raise RankError("a step was taken in which no rank had a sample.")
        trouble = _trouble(values, norm)
        stepped = Stepped(
            {term.name: value for term, value in zip(terms, values, strict=True)},
            {name: tensor.detach() for name, tensor in new.outputs.items()},
            trouble,
            guilty=bool(trouble) and not bool(own.isfinite().all()),
            busy=tuple(seconds),
        )
        if not stepped.trouble:
            _write(flat[gradients.numel() : -len(terms)], buffers)
            self._apply(gradient, factor)
        return stepped

    def predict(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs on the CPU, float32, for inputs (sample, ...); changes no state."""
        self.calls += 1
        self.network.eval()
        with torch.no_grad(), self._precision():
            outputs = _named(self.network(inputs.to(self.device)), [*self._known.kinds])
        return {name: tensor.float().cpu() for name, tensor in outputs.items()}

    def quality(self, batches: Iterable[Samples]) -> Scores:
        """Errors and metrics over the batches of all ranks; changes no state."""
        quality = Quality(self._known.kinds)
        for batch in batches:
            quality.add(self.predict(batch[self._known.inputs]), batch)
        return quality.over_all(self._groups)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters and buffers, on the CPU: copies, so that also tied ones can be written."""
        return {name: t.detach().cpu().clone().contiguous() for name, t in self.network.state_dict().items()}

    def fingerprint(self) -> str:
        """Of the weights: equal on two ranks exactly when they hold the same numbers."""
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

    def _forward(self, batch: MiniBatch, *, apart: bool, seed: int) -> list[Part]:
        """The three parts; in one forward pass, or each in its own where gradients are wanted apart."""
        distilled = having_outputs(batch.distilled) if batch.distilled else batch.distilled
        samples = [self._here(part or _none_of(batch.new)) for part in (batch.new, batch.replayed, distilled)]
        inputs = [part[self._known.inputs] for part in samples]
        with self._random(seed), self._precision():
            if apart:
                outputs = [self._outputs(each) for each in inputs]
            else:
                together = self._outputs(torch.cat(inputs))
                outputs = [
                    dict(zip(together, each, strict=True))
                    for each in zip(*(t.split([*map(len, inputs)]) for t in together.values()), strict=True)
                ]
        targets = [targets_of(without_outputs(part), self._known.inputs) for part in samples]
        stored: tuple[Tensors, ...] = ({}, {}, outputs_of(samples[2]) or self._known.no_outputs(self.device))
        return [Part(*each) for each in zip(outputs, targets, stored, strict=True)]

    def _outputs(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if not len(inputs):  # many networks cannot be called without samples
            return self._known.no_outputs(self.device)
        outputs = _named(self.network(inputs), [*self._known.kinds])
        return {name: tensor.float() for name, tensor in outputs.items()}

    def _scaled(self, terms: Sequence[Term]) -> tuple[list[torch.Tensor], torch.Tensor]:
        # Each term, divided by the number of its samples on all ranks before the backward pass: terms count
        # different samples, and one sum over the ranks must do for all of them. And these numbers' sum.
        counts = torch.tensor([float(len(term.values)) for term in terms], device=self.device)
        counts = self._groups.sum(counts)
        means = [
            term.weight * term.values.float().sum() / count
            for term, count in zip(terms, counts.clamp(min=1), strict=True)
        ]
        return means, counts.sum()

    def _gradients(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """(value, parameter): of each value by all parameters of the network, in one row."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rows = []
        for value in values:
            parts: Sequence[torch.Tensor | None] = [None] * len(parameters)
            if value.requires_grad:  # not where this rank has no sample for it
                parts = torch.autograd.grad(value, parameters, allow_unused=True)
            rows.append(
                torch.cat([
                    (torch.zeros_like(p) if part is None else part).flatten()
                    for p, part in zip(parameters, parts, strict=True)
                ])
            )  # fmt: skip
        return torch.stack(rows)

    def _apply(self, gradient: torch.Tensor, factor: float) -> None:
        # One flat sum for gradients, buffers and loss. DistributedDataParallel would rebuild its buckets
        # after the first step and add in another order after a restart; this adds in one order.
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        if self._training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._training.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * factor
        self._optimizer.step()

    def _here(self, samples: Samples) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in samples.items()}

    @contextlib.contextmanager
    def _random(self, seed: int) -> Iterator[None]:
        devices = [self.device] if self.device != "cpu" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def _precision(self) -> torch.autocast:
        kind = self.device.partition(":")[0]
        wanted = self._training.precision
        if wanted == "auto":
            wanted = "bfloat16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "float32"
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=wanted == "bfloat16")

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = self.learning_rate, self._training.weight_decay
        match self._training.optimizer:
            case "sgd":
                return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
            case "adamw":
                return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def _named(outputs: object, targets: Sequence[str]) -> dict[str, torch.Tensor]:
    if isinstance(outputs, torch.Tensor) and len(targets) == 1:
        return {targets[0]: outputs}
    if (
        isinstance(outputs, Mapping)
        and outputs
        and all(isinstance(t, torch.Tensor) for t in outputs.values())
    ):
        return dict(outputs)
    raise SettingsError(
        f"the network returned {type(outputs).__name__} for the targets {', '.join(targets)}; it must return "
        "a dictionary of tensors named like the targets they are compared with, or one tensor for one target."
    )


def _none_of(samples: Samples) -> Samples:
    return {name: tensor[:0] for name, tensor in samples.items()}


def _trouble(values: Sequence[float], norm: float) -> str:
    if not all(map(math.isfinite, values)):
        return "the loss became " + ("NaN" if any(map(math.isnan, values)) else "infinite")
    return "" if math.isfinite(norm) else "the gradient became infinite or NaN"


def _write(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Put consecutive numbers into tensors."""
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


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
