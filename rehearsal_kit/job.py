"""What a run is: everything that is settled before its first step."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version

import torch
from safetensors.torch import save

from rehearsal_kit.preparation import Preparation
from rehearsal_kit.run_folder import RunFolder, write_private
from rehearsal_kit.scan_tasks import ScanExperience
from rehearsal_kit.settings import Rehearsal, Training
from rehearsal_kit.signature import Signature
from rehearsal_kit.strategies.choice import plain_strategy
from rehearsal_kit.strategies.strategy import Strategy
from rehearsal_kit.tasks import Experience


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank of a run is told."""

    run: RunFolder
    seed: int
    network: torch.nn.Module
    strategy: Strategy
    preparation: Preparation
    training: Training
    rehearsal: Rehearsal
    device: str = "cpu"


def keep_inputs(job: Job, experience: Experience, signature: Signature) -> None:
    """Write what the network takes and gives, and how it is prepared from what is measured (JSON)."""
    (taken,) = [field for field in signature.layout.fields if field.name == signature.inputs]
    inputs = {
        "field": experience.inputs,
        "shape": list(experience.raw_shape),
        "dtype": str(taken.dtype).removeprefix("torch."),
        "outputs": list(signature.outputs),
        "preparation": asdict(experience.preparation) if isinstance(experience, ScanExperience) else None,
    }
    write_private(job.run.inputs, json.dumps(inputs, indent=2))


def keep_job(job: Job, *, ranks: int) -> None:
    """Write the settings (JSON) and the initial weights (safetensors) into the run folder."""
    network = type(job.network)
    settings = {
        **plain_strategy(job.strategy),
        "network": {
            "class": f"{network.__module__}:{network.__qualname__}",
            "arguments": getattr(job.network, "arguments", None),
        },
        "seed": job.seed,
        "ranks": ranks,
        "preparation": asdict(job.preparation),
        "training": asdict(job.training),
        "rehearsal": asdict(job.rehearsal),
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in ("rehearsal-kit", "torch", "numpy", "distributed", "h5py")},
        },
    }
    write_private(job.run.settings, json.dumps(settings, indent=2))
    weights = {
        name: tensor.detach().clone().contiguous() for name, tensor in job.network.state_dict().items()
    }
    write_private(job.run.initial_weights, save(weights))
