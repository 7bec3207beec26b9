"""What a run is: everything that is settled before its first step."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import pickle
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rehearsal_kit.base.digests import DIGITS
from rehearsal_kit.base.errors import RunFolderError, SettingsError, said
from rehearsal_kit.base.files import write_private
from rehearsal_kit.base.plain_values import with_tuples
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.data.experience import Experience
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.learning.module_state import freeze, frozen_parameters, still_modules
from rehearsal_kit.learning.networks.network import is_ours, network_again, plain_arguments
from rehearsal_kit.learning.networks.registry import NETWORKS
from rehearsal_kit.learning.signature import Signature
from rehearsal_kit.learning.strategies.choice import (
    WEIGHTS,
    as_recorded,
    own_code,
    plain_strategy,
    recorded_strategy,
)
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All that is settled before the first step of a run, but for its network."""

    run: RunFolder
    seed: int
    strategy: Strategy
    preparation: Preparation
    training: Training
    rehearsal: Rehearsal
    recovery: Recovery = field(default_factory=Recovery)


@dataclass(frozen=True, kw_only=True)
class RunSpec(RunSettings):
    """What every rank of a run is told."""

    network: torch.nn.Module
    """The network, with its initial weights."""
    replays: RunFolder | None = None
    """Another run whose effects this one follows; None: it is steered."""
    device: str = "cpu"
    lag: int | None = None
    """Steps after which ranks look at what a step came to, as `Learner` has it; None: by the device."""
    room: ShardRoom | None = None
    """Memory in which shards and the buffer may lie; None: that of the device, and on a CPU they stay in
    ordinary host memory, as they were read."""


def packed_spec(settings: RunSettings) -> bytes:
    """The settings as they are sent to the ranks; SettingsError where something of them cannot be.

    By cloudpickle at once: Dask's own way would send classes of modules that were registered by
    `cloudpickle.register_pickle_by_value` as names, which the workers cannot import.
    """
    try:
        packed: bytes = cloudpickle.dumps(settings, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever the parts of a network raise
        raise SettingsError(
            f"the network or the strategy cannot be sent to the workers: {said(error)}. "
            "Open files, locks and generators must not be attributes of them."
        ) from error
    return packed


def keep_inputs(spec: RunSpec, experience: Experience, signature: Signature) -> None:
    """Write what the network takes and gives, and how it is prepared from what is measured (JSON)."""
    (taken,) = [field for field in signature.layout.fields if field.name == signature.inputs]
    inputs = {
        "field": experience.inputs,
        "shape": list(experience.raw_shape),
        "dtype": str(taken.dtype).removeprefix("torch."),
        "outputs": list(signature.outputs),
        "preparation": None if experience.preparation is None else asdict(experience.preparation),
    }
    write_private(spec.run.inputs, json.dumps(inputs, indent=2))


def keep_spec(spec: RunSpec, *, ranks: int) -> None:
    """Write the settings (JSON) and the initial weights (safetensors) into the run folder."""
    network = type(spec.network)
    settings = {
        "identity": secrets.token_hex(8),
        **plain_strategy(spec.strategy),
        "own strategy": own_code(spec.strategy),
        "network": {
            "class": f"{network.__module__}:{network.__qualname__}",
            "arguments": plain_arguments(spec.network),
            "source": _source(network),
            "frozen": frozen_parameters(spec.network),
            "still": still_modules(spec.network),
        },
        "seed": spec.seed,
        "ranks": ranks,
        "preparation": asdict(spec.preparation),
        "training": asdict(spec.training),
        "rehearsal": asdict(spec.rehearsal),
        "recovery": asdict(spec.recovery),
        "versions": versions(),
    }
    write_private(spec.run.settings, json.dumps(settings, indent=2))
    weights = {
        name: tensor.detach().clone().contiguous() for name, tensor in spec.network.state_dict().items()
    }
    write_private(spec.run.initial_weights, save(weights))


def versions() -> dict[str, str]:
    """Versions of everything that decides about the bits of a run."""
    package = Path(str(files("rehearsal_kit")))  # all of it, wherever this file lies
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("rehearsal-kit", "torch", "numpy", "distributed", "h5py")},
        "code of rehearsal-kit": code.hexdigest()[:DIGITS],
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }


def stored_versions(run: RunFolder) -> dict[str, str]:
    """What `versions` said when the run was begun."""
    stored: dict[str, str] = _stored(run)["versions"]
    return stored


def read_settings(run: RunFolder, strategy: Strategy | None = None) -> RunSettings:
    """What `keep_spec` wrote. strategy: needed where it is not one of ours, else RunFolderError."""
    plain = _stored(run)
    if strategy is None:
        if own := plain.get("own strategy"):  # runs of earlier versions do not say it
            raise RunFolderError(
                f"run {run.path} was made with {plain['strategy']}, and {own}; its folder does not hold that "
                "code. Give it again: strategy=..."
            )
        weights = {name: plain[name] for name in WEIGHTS if name in plain}
        try:
            strategy = recorded_strategy(plain["strategy"], **weights)
        except SettingsError as error:
            raise RunFolderError(
                f"run {run.path} was made with the strategy {plain['strategy']}, which is not one of ours; "
                "give it again: strategy=..."
            ) from error
    elif strategy.name != plain["strategy"]:
        raise RunFolderError(
            f"strategy is {strategy.name}, but run {run.path} was made with {plain['strategy']}; give it."
        )
    return RunSettings(
        run=run,
        seed=plain["seed"],
        strategy=as_recorded(strategy, plain),
        preparation=Preparation(**with_tuples(plain["preparation"])),
        # Runs of versions that wrote nothing of it were not divided, nor were their gradients.
        training=Training(**{"scaling": "none", "bucket_mib": None, **plain["training"]}),
        rehearsal=Rehearsal(**with_tuples(plain["rehearsal"])),
        recovery=Recovery(**plain["recovery"]),
    )


def stored_ranks(run: RunFolder) -> int:
    """How many ranks the run was begun with."""
    return int(_stored(run)["ranks"])


def stored_identity(run: RunFolder) -> str:
    """A random number that stands in the settings of a run and in all its checkpoints.

    Empty where no settings were written, as for ranks that are started without a session.
    """
    return str(_stored(run).get("identity", "")) if run.settings.exists() else ""


def read_network(run: RunFolder, network: torch.nn.Module | None = None) -> torch.nn.Module:
    """The network of a run with its initial weights.

    network: needed where the folder cannot make it again, as `why_not_again` says, with any weights.
    RunFolderError if it is missing or has other parameters than the one that the run was made with.
    """
    kept = _stored(run)["network"]
    network = _network_again(run, kept) if network is None else network
    source = _source(type(network))
    if kept.get("source") and source and source != kept["source"]:
        raise RunFolderError(
            f"the source of {type(network).__name__} is not what it was when run {run.path} was made; give "
            "the network that it was made with."
        )
    network = copy.deepcopy(network).cpu()
    try:
        network.load_state_dict(load_file(run.initial_weights))
        if "frozen" in kept:  # runs of earlier versions do not say it
            freeze(network, frozen=kept["frozen"], still=kept["still"])
    except (RuntimeError, AttributeError, OSError, SafetensorError) as error:
        raise RunFolderError(
            f"the initial weights of run {run.path} do not fit the network {type(network).__name__}; give "
            f"the one that the run was made with. {error}"
        ) from error
    return network


def _network_again(run: RunFolder, kept: Mapping[str, Any]) -> torch.nn.Module:
    # By its name alone: runs of earlier versions say another module of this package.
    module, _, name = kept["class"].partition(":")
    if module.partition(".")[0] != "rehearsal_kit" or name not in NETWORKS:
        raise RunFolderError(
            f"run {run.path} was made with the network {kept['class']}, which is not one of ours and is "
            "not stored with it; give it again: network=..."
        )
    if kept["arguments"] is None:
        raise RunFolderError(
            f"run {run.path} was made with a {name} that was altered after it was made, and how is not "
            "stored with it; alter one in the same way, and give it again: network=..."
        )
    return network_again(name, kept["arguments"])


def _source(kind: type[torch.nn.Module]) -> str:
    """Fingerprint of the source of a class; empty where it cannot be found, and for ours.

    Theirs may be written anew and compute the same: `versions` tell which code it was.
    """
    if is_ours(kind):
        return ""
    try:
        return hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()[:DIGITS]
    except (OSError, TypeError):
        return ""


def _stored(run: RunFolder) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(run.settings.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{run.path} is not the folder of a run: {error}.") from error
    return stored
