"""The only place where a network is called: in the right mode and precision, and with memory of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.func import functional_call

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.buffer.row_layout import Samples
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.module_state import Modes
from rehearsal_kit.learning.signature import Signature, targets_of
from rehearsal_kit.learning.stored_outputs import (
    having_outputs,
    of_rows,
    outputs_of,
    rows_having_outputs,
    without_outputs,
)
from rehearsal_kit.learning.strategies.losses import Tensors
from rehearsal_kit.learning.strategies.strategy import Part

_TAKING_STATE = threading.Lock()
"""The generator of torch, one for all threads, keeps its lock while it waits for Python's: two threads that
ask for its state at the same moment, as ranks that are threads do, would wait for each other for ever."""


class ForwardPass:
    """Calls one network. Neither it nor a strategy is given memory that belongs to a shard or to the buffer.

    Many networks work in place on their input, and losses on their targets: what the buffer stores after the
    step, and what comes again in the next epoch, must not change by that.

    precision: of `Training`.
    """

    def __init__(self, network: torch.nn.Module, *, device: str, precision: str) -> None:
        self._network = network
        self._device = device
        self._precision = precision
        self._modes = Modes(network)

    def predict(
        self,
        inputs: torch.Tensor,
        targets: Sequence[str],
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Outputs on the device for inputs (sample, ...), in evaluation mode, by name.

        targets: what a bare tensor is named after, and what must be a tensor where it is returned. weights:
        in the place of those of the network, which do not change by that.
        """
        self._modes.evaluate()
        with torch.no_grad(), self._autocast():
            return self._called([inputs], targets, weights)

    def train(
        self, batch: MiniBatch, signature: Signature, *, apart: bool, seed: int
    ) -> tuple[Part, Part, Part]:
        """New, replayed and distilled samples after a pass in training mode; each in its own if `apart`.

        seed: of whatever is random in the network.
        """
        self._modes.train()
        distilled = having_outputs(batch.distilled) if batch.distilled else batch.distilled
        samples = [part or _none_of(batch.new) for part in (batch.new, batch.replayed, distilled)]
        inputs = [part[signature.inputs] for part in samples]
        with self._random(seed), self._autocast():
            if apart:
                outputs = [self._outputs([each], signature) for each in inputs]
            else:
                together = self._outputs(inputs, signature)
                outputs = [
                    dict(zip(together, each, strict=True))
                    for each in zip(*(t.split([*map(len, inputs)]) for t in together.values()), strict=True)
                ]
        targets = [self._own(targets_of(without_outputs(part), signature.inputs)) for part in samples]
        stored = self._own(outputs_of(samples[2])) or signature.no_outputs(self._device)
        new, replayed, again = (Part(*each) for each in zip(outputs, targets, ({}, {}, stored), strict=True))
        return new, replayed, self._compared(replayed, batch.replayed) if batch.shares_draw else again

    def averaged(
        self, replayed: Samples, signature: Signature, weights: Mapping[str, torch.Tensor]
    ) -> Tensors:
        """What other weights make of representatives, in evaluation mode: named tensors (sample, ...)."""
        if not replayed or not len(replayed[signature.inputs]):
            return signature.no_outputs(self._device)
        outputs = self.predict(replayed[signature.inputs], [*signature.kinds], weights=weights)
        return {name: outputs[name].float() for name in signature.outputs}

    def _compared(self, replayed: Part, samples: Samples) -> Part:
        """Those of the representatives whose outputs some model has made; no row is computed twice."""
        made = rows_having_outputs(samples)
        parts = (replayed.outputs, replayed.targets, self._own(outputs_of(samples)))
        if made is None:  # copies all the same: the loss of the representatives may work in place
            return Part(*({name: tensor.clone() for name, tensor in part.items()} for part in parts))
        return Part(*(of_rows(part, made) for part in parts))

    def _outputs(self, inputs: Sequence[torch.Tensor], signature: Signature) -> dict[str, torch.Tensor]:
        if not any(map(len, inputs)):  # many networks cannot be called without samples
            return signature.no_outputs(self._device)
        outputs = self._called(inputs, [*signature.kinds])
        for name, shape in signature.outputs.items():
            came = tuple(outputs[name].shape[1:]) if name in outputs else "none"
            if came != shape:
                raise SettingsError(
                    f"the network's output {name!r} came as {came} in training; it was {shape} for the first "
                    "samples, and must be so for any number of samples, in training as in evaluation."
                )
        return {name: tensor.float() for name, tensor in outputs.items()}

    def _called(
        self,
        inputs: Sequence[torch.Tensor],
        targets: Sequence[str],
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        there = [each.to(self._device, non_blocking=True) for each in inputs]
        together = torch.cat(there)  # a copy, also of a single one
        if weights is None:
            outputs = self._network(together)
        else:  # each place once: a module with two names would be left with what was to stand in for it
            outputs = functional_call(self._network, dict(weights), together, tie_weights=False)
        return named_outputs(outputs, targets, count=len(together))

    def _own(self, samples: Samples) -> Tensors:
        return {
            name: tensor.to(self._device, non_blocking=True, copy=True) for name, tensor in samples.items()
        }

    @contextlib.contextmanager
    def _random(self, seed: int) -> Iterator[None]:
        with _TAKING_STATE:
            before = torch.default_generator.get_state()
            # Not by torch.manual_seed: for each kind of device that is not in use it writes down the stack.
            torch.default_generator.manual_seed(seed)
        try:
            with self._random_on_gpu(seed):
                yield
        finally:
            with _TAKING_STATE:
                torch.default_generator.set_state(before)

    @contextlib.contextmanager
    def _random_on_gpu(self, seed: int) -> Iterator[None]:
        if not self._device.startswith("cuda"):
            yield
            return
        before = torch.cuda.get_rng_state(self._device)
        with torch.cuda.device(self._device):
            torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(before, self._device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        kind = self._device.partition(":")[0]
        if not torch.amp.is_autocast_available(kind):  # as where nothing is computed
            return contextlib.nullcontext()
        enabled = takes_bfloat16(self._device, self._precision)
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)


def takes_bfloat16(device: str, precision: str) -> bool:
    """Whether a network is computed with bfloat16 on a device, by the `precision` of `Training`."""
    if precision != "auto":
        return precision == "bfloat16"
    # Where it is emulated it takes more time than float32.
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def named_outputs(outputs: object, targets: Sequence[str], *, count: int) -> dict[str, torch.Tensor]:
    """What a network returned for `count` samples, by name: tensors of real numbers, (sample, ...).

    A bare tensor is the output for the only target. What meets no target and is no such tensor is left out:
    None, a scalar such as an auxiliary loss, a list. SettingsError, by name, for one that meets a target.
    """
    if isinstance(outputs, torch.Tensor) and len(targets) == 1:
        outputs = {targets[0]: outputs}
    if not isinstance(outputs, Mapping):
        raise SettingsError(
            f"the network returned {type(outputs).__name__} for the targets {', '.join(targets)}; it must "
            "return a dictionary of tensors named like the targets they are compared with, or one tensor for "
            "one target."
        )
    for name in targets:
        if name in outputs and not _is_of(outputs[name], count):
            raise SettingsError(
                f"the network's output {name!r} is to meet the target of that name, but came as "
                f"{_words(outputs[name])} for {count} samples; it must be a tensor of real numbers whose "
                "first axis is the sample. Return that, or name the output otherwise."
            )
    return {name: output for name, output in outputs.items() if _is_of(output, count)}


def _is_of(output: object, count: int) -> bool:
    return (
        isinstance(output, torch.Tensor)
        and not output.is_complex()
        and output.dim() > 0
        and len(output) == count
    )


def _words(output: object) -> str:
    if not isinstance(output, torch.Tensor):
        return type(output).__name__
    return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"


def _none_of(samples: Samples) -> Samples:
    return {name: tensor[:0] for name, tensor in samples.items()}
