"""What a host says of a rank that has failed: the error, what it means, and how to go on."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rehearsal_kit.base.errors import (
    ClusterError,
    LeaseError,
    ReplayError,
    RunFolderError,
    SettingsError,
    said_where,
)
from rehearsal_kit.base.failure_kinds import Kind, memory_held, shortened, sort_of
from rehearsal_kit.base.settings import Training
from rehearsal_kit.learning.networks.network import why_not_again
from rehearsal_kit.learning.strategies.choice import own_code
from rehearsal_kit.rank.run_spec import RunSpec

FOR_EVER = (SettingsError, ReplayError, RunFolderError, LeaseError, ClusterError)
"""Errors of ours that come again however often ranks are started."""


@dataclass(frozen=True, kw_only=True)
class StepInForce:
    """How large the steps of a rank are, and how its run is gone on with."""

    run: str
    """Folder of the run."""
    given: str
    """What has to be given again to go on, as arguments; empty where all is in the folder."""
    training: Training
    representatives: int

    @staticmethod
    def of(spec: RunSpec) -> StepInForce:
        """What a job says of them."""
        own = {"network": why_not_again(spec.network), "strategy": own_code(spec.strategy)}
        return StepInForce(
            run=str(spec.run.path),
            given="".join(f"{what}=..., " for what, why in own.items() if why),
            training=spec.training,
            representatives=spec.rehearsal.representatives,
        )


@dataclass(frozen=True, kw_only=True)
class RankFailure:
    """The first error of one rank."""

    error: str
    """What it says, and what helps."""
    kind: Kind
    fatal: bool
    """Whether it would come again however often the rank is started."""
    device: str
    """The card, where it was the card that failed; else empty."""
    failed_at: float
    """Seconds since the epoch."""

    @property
    def sticky(self) -> bool:
        """Whether its process cannot be used any more; on a CPU nothing is broken, whatever an error says."""
        return bool(self.device)

    @property
    def consequence(self) -> bool:
        """Whether it came of another rank, which says why."""
        return self.kind is Kind.CONSEQUENCE

    @staticmethod
    def of(error: BaseException, *, card: str, in_force: StepInForce | None) -> RankFailure:
        """Read an error. card: as the host knows it. in_force: None where the job could not be read."""
        words = text = said_where(error)
        sort = sort_of(error)
        match sort.kind:
            case Kind.MEMORY:
                words = ". ".join(filter(None, (shortened(text), memory_held(text), _smaller(in_force))))
            case Kind.STICKY | Kind.SETUP:
                where = f" on {card}" if card else ""
                words = "; ".join(filter(None, (f"{shortened(text)}{where}", sort.advice)))
        return RankFailure(
            error=words,
            kind=sort.kind,
            fatal=sort.kind in (Kind.MEMORY, Kind.SETUP) or isinstance(error, FOR_EVER),
            device=card if sort.kind is Kind.STICKY else "",
            failed_at=time.time(),
        )


def _smaller(in_force: StepInForce | None) -> str:
    """How to go on with less memory."""
    if in_force is None:
        return ""
    steer = {"batch": max(1, in_force.training.batch // 2)}
    if in_force.representatives:
        steer["representatives"] = in_force.representatives // 2
    half = ", or begin a new run with Training(precision='bfloat16')"
    return (
        "Other ranks would come to the same. Go on with smaller steps: "
        f"rk.resume({in_force.run!r}, cluster, {in_force.given}steer={steer})"
        f"{half if in_force.training.precision == 'float32' else ''}"
    )
