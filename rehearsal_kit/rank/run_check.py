"""What can be known of a run before it begins: from its arguments alone, and by one dry step in memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from rehearsal_kit.base.errors import RehearsalKitError, SettingsError, said_where
from rehearsal_kit.base.failure_kinds import Kind, sort_of
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import SETTINGS, Recovery, Rehearsal, Training
from rehearsal_kit.base.tensor_files import NAMES
from rehearsal_kit.buffer.row_layout import IDENTITY, Samples
from rehearsal_kit.data.experience import NUMBER
from rehearsal_kit.data.folder_order import matching
from rehearsal_kit.data.open_experience import open_experience
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.network import why_not_again
from rehearsal_kit.learning.stored_outputs import with_outputs
from rehearsal_kit.learning.strategies.choice import own_code, plain_strategy, require_suited
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec
from rehearsal_kit.record.commands import Arrived, Watch

TRAINABLE = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
CHECKED = 3
"""Tasks that are tried until one can be trained."""
LOOKED_AT = 32
"""Samples, spread over a task, among which some with counts are looked for. Where the shutter was closed
there are none among thousands, and nobody waits for a check that reads them all."""
SAMPLES = 2
"""Samples in each part of the dry mini-batches: as few as batch norm can do with."""


@dataclass(frozen=True)
class Tried:
    """What came of dry steps."""

    reason: str = ""
    """Why the job cannot be trained; empty if it can, as far as can be told."""
    sticky: bool = False
    """Whether a GPU, if it was on one, cannot be used in this process any more."""


def require_sound(settings: RunSettings, network: object) -> None:
    """SettingsError for what no task can make right, found without running anything."""
    kinds = {
        "strategy": Strategy,
        "preparation": Preparation,
        "training": Training,
        "rehearsal": Rehearsal,
        "recovery": Recovery,
    }
    for name, kind in kinds.items():
        given = getattr(settings, name)
        if not isinstance(given, kind):
            raise SettingsError(f"{name} is {given!r}; it must be a {kind.__name__}{_called(given)}.")
    if not isinstance(network, torch.nn.Module):
        raise SettingsError(f"network is {network!r}; it must be a torch.nn.Module{_called(network)}.")
    require_suited(settings.strategy, settings.rehearsal, settings.training)
    for name, value in plain_strategy(settings.strategy).items():
        SETTINGS[name].require(value)  # a checkpoint with another could not be taken up
    _require_storable(network)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if parameter.dtype not in TRAINABLE:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TRAINABLE)
            raise SettingsError(
                f"the parameter {name} is {_kind(parameter)}, which is too short to be trained; allowed are "
                f"{allowed}. Convert the network, or freeze this part by requires_grad_(False)."
            )
    if not trained:
        raise SettingsError(
            f"no parameter of the network {type(network).__name__} has requires_grad, so there is nothing to "
            "train; switch it on for the parts to be trained."
        )


def given_again(network: torch.nn.Module, strategy: Strategy) -> str:
    """What people must know who go on with such a run in another kernel; empty where all of it is ours."""
    reasons = {}
    if reason := why_not_again(network):
        reasons["network"] = reason
    if reason := own_code(strategy):
        reasons["strategy"] = reason
    if not reasons:
        return ""
    given = ", ".join(f"{what}=..." for what in reasons)
    options = " ".join(f"--{what} FILE.py:NAME" for what in reasons)
    return (
        f"{'; '.join(reasons.values())}. The run folder keeps what was learned, but not this code: to go on "
        f"in another kernel, or to replay the run, give the same {' and '.join(reasons)} again, as "
        f"rk.resume(run, cluster, {given}), rk.attach(run, {given}) or rehearsal-kit replay {options}."
    )


def _require_storable(network: torch.nn.Module) -> None:
    """SettingsError for parameters and buffers with which ranks cannot begin, or that no checkpoint holds."""
    stored = network.state_dict()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise SettingsError(
                f"{name} of the network {type(network).__name__} has no shape yet, so ranks could not begin "
                "with equal weights: call the network once on a sample before, or give the layer its size "
                "(Linear instead of LazyLinear)."
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            raise SettingsError(
                f"{name} of the network {type(network).__name__} is {_kind(tensor)}; parameters and buffers "
                "must be ordinary dense tensors with values."
            )
        if name in stored and tensor.dtype not in NAMES:
            raise SettingsError(
                f"{name} of the network {type(network).__name__} is {_kind(tensor)}, which no checkpoint can "
                "hold; convert it, for instance complex128 to complex64."
            )


def known_tasks(asked: Sequence[Arrived | Watch]) -> list[Arrived]:
    """The first tasks that these wishes bring: those submitted, and files that lie in watched folders."""
    found: list[Arrived] = []
    for command in asked:
        if isinstance(command, Arrived):
            found.append(command)
        elif command.existing:
            files = filter(os.path.isfile, matching(command.pattern))
            found += [
                Arrived(name=Path(path).stem, path=path, fields=command.fields)
                for path in itertools.islice(files, CHECKED)
            ]
    return found[:CHECKED]


def dry_run(spec: RunSpec, tasks: Sequence[Arrived], *, optimizer: bool = True) -> str:
    """Why this job cannot be trained on any of these tasks; empty if it can, as far as can be told.

    As `dry_steps`, whose words this gives.
    """
    return dry_steps(spec, tasks, optimizer=optimizer).reason


def dry_steps(spec: RunSpec, tasks: Sequence[Arrived], *, optimizer: bool = True) -> Tried:
    """What becomes of this job on the first of these tasks that it can be trained on.

    Takes two steps in memory on a few samples of the first task that can be read. job: may be changed, so
    give a copy. A task that cannot be read says nothing of the job: the ranks will set it aside.
    optimizer: whether the steps are taken, too, for which a process imports more, for a second or two.
    """
    first = Tried()
    for arrived in tasks:
        found = _sample_of(arrived, spec)
        if found is None:
            continue
        tried = _stepped(spec, *found, optimizer=optimizer)
        if not tried.reason:
            return tried
        if not first.reason:
            first = replace(tried, reason=f"{arrived.name} ({arrived.path}): {tried.reason}")
    return first


def _sample_of(arrived: Arrived, spec: RunSpec) -> tuple[Samples, str] | None:
    try:
        experience = open_experience(arrived, spec.preparation)
        count = experience.count("training")
        spread = np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(np.int64))
        for begin in range(0, len(spread), SAMPLES):
            samples = experience.load("training", spread[begin : begin + SAMPLES])
            identity = samples.pop(NUMBER)
            if len(identity):
                return _as_many({**samples, IDENTITY: identity}), experience.inputs
    except (RehearsalKitError, OSError):
        return None
    return None


def _as_many(samples: Samples) -> Samples:
    chosen = torch.arange(SAMPLES) % len(samples[IDENTITY])
    return {name: tensor[chosen] for name, tensor in samples.items()}


def _stepped(spec: RunSpec, samples: Samples, inputs: str, *, optimizer: bool) -> Tried:
    """What goes wrong with two steps: one without and one with what a buffer would give."""
    with torch.random.fork_rng([spec.device] if spec.device != "cpu" else []):
        try:
            learner = Learner(spec.network, spec.training, device=spec.device, groups=ProcessGroups(0, 1))
            signature = learner.meet(samples, inputs)
            learner.know(signature)
            signature.require(samples, half=spec.rehearsal.half)
            live_settings = LiveSettings.of(spec)
            if live_settings.needs_buffer:
                layout, rehearsal = live_settings.stored(samples, signature.no_outputs("cpu"))
                rehearsal.samples(layout.row_bytes)
            strategy = spec.strategy
            stored = with_outputs(samples, learner.predict(samples[inputs]), version=0)
            new = _first(samples, min(SAMPLES, spec.training.batch))
            again = MiniBatch.augmented(new, stored, stored, strategy=strategy)
            for batch in (replace(again, replayed={}, distilled={}), again):
                stepped = (learner.step if optimizer else learner.computed)(batch, strategy=strategy)
                if stepped.failed:
                    return Tried(stepped.error)
            if optimizer:
                learner.state.tensors()
            learner.state.fingerprint()
            learner.state.sums()
        except Exception as error:  # whatever the network's own code raises
            return Tried(said_where(error), sticky=sort_of(error).kind is Kind.STICKY)
    return Tried()


def _first(samples: Samples, count: int) -> Samples:
    return {name: tensor[:count] for name, tensor in samples.items()}


def _kind(tensor: torch.Tensor) -> str:
    where = "without values (meta)" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
    return f"{str(tensor.dtype).removeprefix('torch.')}, {where}"


def _called(given: object) -> str:
    return f"; write {given.__name__}(...), with brackets" if isinstance(given, type) else ""
