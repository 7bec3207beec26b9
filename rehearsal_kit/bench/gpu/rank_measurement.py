"""All cases of `bench gpu` on one of several real ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.bench.clock import is_cuda
from rehearsal_kit.bench.gpu.case_measurement import CaseMeasurement
from rehearsal_kit.bench.gpu.cases import Case, Effort
from rehearsal_kit.bench.gpu.copies import measure_copies
from rehearsal_kit.bench.gpu.findings import RankFindings
from rehearsal_kit.learning.gpu_arithmetic import device_versions, gpu_arithmetic


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured; the same on all ranks."""

    cases: tuple[Case, ...]
    effort: Effort
    folders: tuple[Path, ...]
    """Where each case was laid out."""
    devices: tuple[str, ...]
    """Device of each rank."""
    copies: bool
    """Whether copies between host and device are measured, too."""


def measure_gpu(groups: ProcessGroups, plan: Plan) -> RankFindings:
    """Measure on one rank; all ranks call it together."""
    device = plan.devices[groups.rank]
    if is_cuda(device):
        torch.cuda.set_device(device)
    torch.manual_seed(groups.rank)
    with gpu_arithmetic(device, deterministic=True):
        versions = {**device_versions(device), "precision": _precision(device)}
    cases = [
        CaseMeasurement(
            case=case,
            effort=plan.effort,
            groups=groups,
            device=device,
            folder=folder,
        ).findings()
        for case, folder in zip(plan.cases, plan.folders, strict=True)
    ]
    copies = measure_copies(device, plan.effort) if plan.copies else {}
    return RankFindings(cases=tuple(cases), copies=copies, versions=versions)


def _precision(device: str) -> str:
    """What `Training(precision="auto")` computes with."""
    native = is_cuda(device) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16, mixed" if native else "float32"
