"""What the coordinator tells hosts and hears from them: plain values, for which it needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rehearsal_kit.base.natural_order import natural_key
from rehearsal_kit.base.settings import Recovery

TOPIC_PREFIX = "rehearsal-kit/"
"""Beginning of the topics under which ranks tell their records."""
CLOSING_TOPIC = "rehearsal-kit-closing"
"""Under which a worker tells the coordinator the topic of its run when it closes by itself."""


def rank_key(host: str, name: object) -> tuple[str, list[int | str]]:
    """Sorts workers as they become ranks, for the kernel and the scheduler alike: by host, then by name.

    Names survive a restart of a worker, addresses do not.
    """
    return host, natural_key(str(name))


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """What the kernel asks the coordinator to run."""

    topic: str
    """Where records go; also names the run on this cluster."""
    run: str
    """Its folder."""
    spec: bytes
    """The pickled `RunSpec`; passed on without looking into it, inside the encryption of this cluster."""
    ranks: int
    device: str
    """cpu or cuda: what the cluster was started for, and every rank has to train on."""
    shared_gpus: bool
    """Whether it was asked for that several ranks have one GPU."""
    place: dict[str, str]
    """`Cluster.place`: how others reach this cluster."""
    recovery: Recovery

    @staticmethod
    def of(plain: Mapping[str, Any]) -> RunOrder:
        """The order that `asdict` has taken apart."""
        return RunOrder(**{**plain, "recovery": Recovery(**plain["recovery"])})


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a host is told to start."""

    topic: str
    spec: bytes
    run: str
    generation: int
    rank: int
    ranks: int
    rendezvous: str
    """A file in the private folder of the run: who cannot read the folder cannot join."""
    nonce: str
    lease: str
    """Token of the lease on the run folder; a rank whose lease was lost writes nothing more."""
    timeout_s: float
    """How long a rank waits for another."""
    device: str
    """cpu or cuda."""
    shared_gpus: bool
    """Whether it was asked for that several ranks have one GPU."""


@dataclass(frozen=True, kw_only=True)
class HostStatus:
    """What a host says of its rank of one run."""

    alive: bool
    """Whether its training thread is there, of this run or another."""
    generation: int = 0
    """0 if it has never had a rank of this run."""
    training: bool = False
    """Whether it has met the others."""
    beats: int = 0
    """Grows whenever the rank gets on."""
    step: int = 0
    outcome: str = ""
    """finished, stopped, interrupted, regrouped or failed, once it has ended."""
    error: str = ""
    fatal: bool = False
    """Whether it would fail in the same way however often it is started: a setting or a ledger is wrong."""
    consequence: bool = False
    """Whether it failed because of another rank, which says why."""
    failed_at: float = 0.0
    """When it failed, in seconds since the epoch."""
    device: str = ""
    """UUID and name of its card, where it was the card that failed."""
