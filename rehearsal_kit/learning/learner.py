"""Network and optimizer on one rank: one step, one evaluation."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rehearsal_kit.base.errors import RankError, TaskError, said
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.joint_step import Averages, JointStep
from rehearsal_kit.learning.learner_state import LearnerState
from rehearsal_kit.learning.metrics import Scores, TaskMetrics
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.module_state import count_of, shaped_as
from rehearsal_kit.learning.signature import Signature, targets_of
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.learning.summed_step import Stepped


class Learner:
    """Data-parallel training of one network: all ranks hold the same weights after every step.

    network: maps the input (sample, ...) to a dictionary of outputs, each (sample, ...), or to one tensor
    where there is one target. Outputs meet targets by name. asynchronous: whether the host goes on while the
    device computes: then a step reads nothing of it before the optimizer is under way, too, and the optimizer
    is a fused one, which leaves a step out by itself. By default on every device but the CPU.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        training: Training,
        *,
        device: str,
        groups: ProcessGroups,
        asynchronous: bool | None = None,
    ) -> None:
        if asynchronous is None:
            asynchronous = device != "cpu"
        self.network = network.to(device)
        self.state = LearnerState(self.network, training, fused=asynchronous)
        self.device = device
        self.signature: Signature | None = None
        """None until a first task was met."""
        self.training = training
        """How the next step is taken, as it was steered last."""
        self.calls = 0
        """Steps and predictions so far; grows while this learner gets on."""
        self._groups = groups
        self._forward = ForwardPass(self.network, device=device, precision=training.precision)
        self._steps = JointStep(
            self.network, self._forward, device=device, groups=groups, asynchronous=asynchronous
        )

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

    def know(self, signature: Signature | None) -> None:
        """This goes in and comes out from now on; None: nothing is known before another first task is met."""
        self.signature = signature

    def steer(self, training: Training) -> None:
        """Take the next steps by these settings, as far as they may change between two steps."""
        self.training = training

    def step(self, batch: MiniBatch, *, strategy: Strategy, factor: float = 1.0, seed: int = 0) -> Stepped:
        """Train on the augmented mini-batches of all ranks, unless their loss is not finite.

        factor: of the schedule, by which the learning rate is multiplied. seed: of whatever is random in the
        forward pass (dropout), on this rank and at this step. Where network or strategy raise on any rank,
        none takes the step and all are told. RankError if no rank has a sample.
        """
        self.calls += 1
        summed = self._steps.of(
            batch, self._known, strategy=strategy, seed=seed, averages=self._averages_for(strategy)
        )
        if self.state.leaves_out:
            if summed.gradient is not None:
                self._give(summed.gradient, factor)
                self.state.take(unless=summed.unsound)
            stepped = summed.read()
        else:
            stepped = summed.read()
            if summed.gradient is not None and not stepped.trouble:
                self._give(summed.gradient, factor)
                self.state.take()
        if not stepped.trouble:
            self.state.follow()
        return stepped

    def computed(self, batch: MiniBatch, *, strategy: Strategy) -> Stepped:
        """What a step would come to; it is not taken, and no optimizer is made. RankError as `step`."""
        averages = self._averages_for(strategy)
        return self._steps.of(batch, self._known, strategy=strategy, seed=0, averages=averages).read()

    def predict(self, inputs: torch.Tensor, *, trained: bool = False) -> dict[str, torch.Tensor]:
        """Outputs on the CPU, float32, for inputs (sample, ...); changes no state.

        trained: by the weights in training themselves, also where an average of them predicts.
        """
        self.calls += 1
        weights = None if trained else self.state.average
        outputs = self._forward.predict(inputs, [*self._known.kinds], weights=weights)
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
            raise_of_device(error)
            trouble = f"{said(error)} (rank {self._groups.rank})"
        if reason := self._groups.first_trouble(trouble):
            raise TaskError(reason)
        return metrics.over_all(self._groups)

    @property
    def _known(self) -> Signature:
        if self.signature is None:
            raise RankError("the learner was used before it met its first task.")
        return self.signature

    def _averages_for(self, strategy: Strategy) -> Averages:
        # Not at every step of every strategy: they are put together anew each time.
        return (
            self.state.average if strategy.asks_average else None,
            self.state.plastic_average if strategy.asks_plastic_average else None,
        )

    def _give(self, gradient: torch.Tensor, factor: float) -> None:
        """Give the optimizer the gradient, (number,), and its learning rate."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        for parameter, part in zip(parameters, gradient.split([*map(count_of, parameters)]), strict=True):
            shaped = shaped_as(parameter, part)
            parameter.grad = _laid_out_as(parameter, shaped) if self.state.leaves_out else shaped
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip_norm)
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * factor


def _laid_out_as(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient in memory as the parameter is: a fused optimizer goes through both side by side."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)
