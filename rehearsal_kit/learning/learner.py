"""Network and optimizer on one rank: one step, one evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import torch

from rehearsal_kit.base.byte_units import MIB
from rehearsal_kit.base.errors import RankError, TaskError, said
from rehearsal_kit.base.failure_kinds import raise_of_device
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.randomness import torch_seed
from rehearsal_kit.base.settings import Training
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.forward_pass import ForwardPass, takes_bfloat16
from rehearsal_kit.learning.gradient_buckets import GradientBuckets
from rehearsal_kit.learning.joint_step import Averages, JointStep
from rehearsal_kit.learning.learner_state import LearnerState, trained_parameters
from rehearsal_kit.learning.memory_format import laid_out_as, lay_by_channels, lies_by_channels
from rehearsal_kit.learning.metrics import Scores, TaskMetrics
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.signature import Signature, targets_of
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.learning.summed_step import Stepped, SummedStep

LAG = 2
"""Steps that a GPU is given before the host looks at the first of them: so it is never without work."""


class Learner:
    """Data-parallel training of one network: all ranks hold the same weights after every step.

    network: maps the input (sample, ...) to a dictionary of outputs, each (sample, ...), or to one tensor
    where there is one target. Outputs meet targets by name. lag: steps after which the host looks at what
    a step came to: at 0 before the optimizer takes it, else the device itself leaves out what is not sound,
    and every step after it until the host has seen it. By default 0 on the CPU, where nothing is gained.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        training: Training,
        *,
        device: str,
        groups: ProcessGroups,
        lag: int | None = None,
    ) -> None:
        lag = (0 if device == "cpu" else LAG) if lag is None else lag
        self.network = network.to(device)
        if lies_by_channels(device, bfloat16=takes_bfloat16(device, training.precision)):
            lay_by_channels(self.network)
        self.state = LearnerState(self.network, training, fused=lag > 0)
        self.lag = lag if self.state.leaves_out else 0
        """Steps that are launched before the oldest of them has to be read."""
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
            self.network,
            self._forward,
            buckets=_buckets(self.network, training, device=device, ranks=groups.ranks),
            groups=groups,
            asynchronous=self.lag > 0 or device != "cpu",
        )
        self._unread = deque[SummedStep]()
        self._left_out: torch.Tensor | None = None
        """1 once a step was left out that the host has not seen, else 0: float32 () on the device."""

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

    def step(
        self, batch: MiniBatch, *, strategy: Strategy, factor: float = 1.0, seed: int = 0, step: int = 0
    ) -> Stepped:
        """Train on the augmented mini-batches of all ranks, and see what came of it; as `launch` and `read`.

        Says the first trouble of steps that were launched before and not read.
        """
        self.launch(batch, strategy=strategy, factor=factor, seed=seed, step=step)
        return self.read()[-1]

    def launch(
        self, batch: MiniBatch, *, strategy: Strategy, factor: float = 1.0, seed: int = 0, step: int = 0
    ) -> SummedStep:
        """Train on the augmented mini-batches of all ranks, unless their loss is not finite; read it later.

        batch: lent until the step is read; a copy of pinned memory may be under way until then.
        factor: of the schedule, by which the learning rate is multiplied. seed, step: of the run and number
        of this step, the same on all ranks: whatever is random in a step depends on these, and on the rank
        where ranks are to differ, as in the forward pass (dropout). Where network or strategy raise on any
        rank, none takes the step and all are told. RankError if no rank has a sample.
        """
        self.calls += 1
        own_seed = torch_seed(seed, "forward", self._groups.rank, step)
        averages = self._averages_for(strategy)
        summed = self._steps.of(batch, self._known, strategy=strategy, seed=own_seed, averages=averages)
        self._unread.append(summed)
        if summed.gradients is None:
            return summed
        unless = None
        if self.lag:
            unless = self._sticking(summed.unsound)
        elif summed.read().trouble:
            return summed
        self._give(summed.gradients, factor)
        self.state.take(unless=unless)
        if unless is not None:
            summed.launched(unless=unless)
        self.state.follow(unless=unless)
        return summed

    def read(self, *, but: int = 0) -> list[Stepped]:
        """What launched steps came to, in their order; not of so many of the newest ones.

        The last may be one with trouble. Then all that was launched after it was left out, too, and is
        forgotten; the same on all ranks.
        """
        found: list[Stepped] = []
        while len(self._unread) > but:
            summed = self._unread.popleft()
            found.append(summed.read())
            if found[-1].trouble:
                followed = [each for each in (summed, *self._unread) if not each.failed]
                self.state.forget(len(followed) if self.lag else 0)
                self._unread.clear()
                self._left_out = None
        return found

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

    def _sticking(self, unsound: torch.Tensor) -> torch.Tensor:
        """1 where this step or any before it that the host has not seen is not sound: float32 ()."""
        self._left_out = unsound if self._left_out is None else torch.maximum(self._left_out, unsound)
        return self._left_out

    def _give(self, gradients: Sequence[torch.Tensor], factor: float) -> None:
        """Give the optimizer the gradients, each in the shape of its parameter, and its learning rate."""
        parameters = trained_parameters(self.network)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = laid_out_as(parameter, gradient) if self.state.leaves_out else gradient
        if self.training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip_norm)
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * factor


def _buckets(network: torch.nn.Module, training: Training, *, device: str, ranks: int) -> GradientBuckets:
    """Buckets of the size in the settings; one where a rank is alone, which has nothing to send early."""
    mib = training.bucket_mib if ranks > 1 else None
    most = None if mib is None else mib * MIB / torch.float32.itemsize
    # On a CPU an element would stand elsewhere, and be added up over the ranks in another order.
    in_memory_order = device != "cpu"
    parameters = trained_parameters(network)
    return GradientBuckets(parameters, device=device, most=most, in_memory_order=in_memory_order)
