"""A recorded run once more: the same settings, seed, data and commands at their steps, and what differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from rehearsal_kit.base.errors import ReplayError, TaskError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.base.tensor_fingerprint import tensor_fingerprint
from rehearsal_kit.cluster.cluster import Cluster, start_cluster
from rehearsal_kit.cluster.cluster_calls import ask_workers
from rehearsal_kit.cluster.worker_check import tell_device_versions
from rehearsal_kit.cluster.workers import workers_in_order
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import (
    RunSpec,
    keep_spec,
    read_network,
    read_settings,
    stored_ranks,
    stored_versions,
    versions,
)
from rehearsal_kit.record.effects import segments
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import CheckpointTaken, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.session import ContinuedSession


@dataclass(frozen=True)
class Compared:
    """One place at which a run and its replay were compared."""

    where: str
    recorded: str
    """Fingerprint of the weights."""
    replayed: str
    """Empty if the replay did not come by there."""

    @property
    def same(self) -> bool:
        """Whether the weights were the same, bit for bit."""
        return self.recorded == self.replayed


def replay_run(
    run: RunFolder,
    into: RunFolder,
    *,
    network: torch.nn.Module | None = None,
    strategy: Strategy | None = None,
    tell: Callable[[str], object] | None = None,
) -> Timeline:
    """Carry out what the ledger of `run` says, on as many workers, in a new run folder; its timeline.

    Where the run went on with another number of ranks, the replay does so as well. It is trained on the kind
    of device that the run was trained on.

    network, strategy: needed where they are not of this package, or the network was altered after it was
    made. tell: is told, a line each, which versions and which devices are not those that the run was made
    with, and then it is tried all the same; `compare_runs` says whether the bits are the same. None: what
    differs is an error.

    Raises:
        ReplayError: other versions of Python, torch or this package, another device, or data that have
            changed.
        RankError: what was recorded did not come about again.
    """
    if tell is None:
        require_same_versions(run)
    elif changed := changed_versions(run):
        tell(f"with other versions: {'; '.join(changed)}")
    settings = read_settings(run, strategy)
    spec = RunSpec(
        **vars(replace(settings, run=into, recovery=Recovery(checkpoint_s=1e9, restarts=0))),
        network=read_network(run, network),
        replays=run,
    )
    kind = "auto" if any(versions["device"] == "cuda" for versions in recorded_devices(run)) else "cpu"
    for part, ranks in enumerate(recorded_ranks(run)):
        with start_cluster(kind, workers=ranks) as cluster:
            deterministic = settings.training.deterministic
            if tell is None:
                require_same_device(run, cluster, deterministic=deterministic)
            elif changed := _devices_changed(run, cluster, deterministic=deterministic):
                tell(f"on another device: {'; '.join(changed)}")
            if not part:
                into.create()
                keep_spec(spec, ranks=ranks)
            with ContinuedSession.resumed(cluster, spec) as session:
                session.start()
                with contextlib.suppress(TaskError):  # of the recorded run nothing was trained, either
                    session.wait()
    return Timeline.load(into.timeline)


def recorded_ranks(run: RunFolder) -> list[int]:
    """How many ranks made each part of a run; one part, unless it went on with another number of them."""
    parts = segments(read_ledger(run.effects))
    return [int(part[0]["world_size"]) for part in parts] or [stored_ranks(run)]


def recorded_devices(run: RunFolder) -> list[Mapping[str, str]]:
    """What decided about the bits of the devices of rank 0, one for each time that ranks were started.

    Of runs of versions up to November 2026 only which kind of device that was.
    """
    joined = Timeline.load(run.timeline).records(Joined)
    return [{"device": record.device.partition(":")[0], **record.versions} for record in joined]


def compare_runs(run: RunFolder, replayed: RunFolder) -> list[Compared]:
    """The weights at every end of a task, at every checkpoint and at the end: recorded and replayed.

    At checkpoints by sums over all their bytes.
    """
    recorded, again = _fingerprints(run), _fingerprints(replayed)
    compared = [Compared(where, weights, again.get(where, "")) for where, weights in recorded.items()]
    if run.weights.exists():
        # What is kept after the last task, or at the end, where the run came that far.
        now = _of_file(replayed.weights) if replayed.weights.exists() else ""
        compared.append(Compared("weights that were kept", _of_file(run.weights), now))
    return compared


def require_same_versions(run: RunFolder) -> None:
    """ReplayError if something that decides about bits is not what it was."""
    if changed := changed_versions(run):
        raise ReplayError(
            f"{_made_with(run, changed)}: install them, for example in an environment of their own; or try "
            "it with these, by --any-versions."
        )


def changed_versions(run: RunFolder) -> list[str]:
    """What decides about bits and is another one now than when the run was made, in words."""
    return _changes(stored_versions(run), versions())


def changed_devices(run: RunFolder, now: Mapping[str, str]) -> list[str]:
    """What decides about the bits of a device and is another one now than it ever was in the run, in words.

    now: as `device_versions` tells it.
    """
    changes = [change for then in recorded_devices(run) for change in _changes(then, now)]
    return [*dict.fromkeys(changes)]


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {value} then, {now.get(name, 'none')} now"
        for name, value in then.items()
        if value != now.get(name)
    ]


def require_same_device(run: RunFolder, cluster: Cluster, *, deterministic: bool) -> None:
    """ReplayError if the workers of this cluster do not compute as those did on which the run was trained."""
    if changed := _devices_changed(run, cluster, deterministic=deterministic):
        reason = "" if cluster.address.kind == "cuda" else f" ({cluster.reason})"
        raise ReplayError(
            f"{_made_with(run, changed)}{reason}: replay it on such a machine; or try it on this one, by "
            "--any-versions."
        )


def _devices_changed(run: RunFolder, cluster: Cluster, *, deterministic: bool) -> list[str]:
    """What decides about the bits of a device and is another one on this cluster, in words."""
    kind, worker = cluster.address.kind, workers_in_order(cluster)[:1]
    told = ask_workers(cluster.client, tell_device_versions, kind, deterministic, workers=worker)
    return [change for now in told.values() for change in changed_devices(run, now)]


def _made_with(run: RunFolder, changed: Sequence[str]) -> str:
    return (
        f"run {run.path} was made with other versions: {'; '.join(changed)}. Bits are only sure to be the "
        "same with the same ones"
    )


def _fingerprints(run: RunFolder) -> dict[str, str]:
    timeline = Timeline.load(run.timeline)
    ended = {
        f"task {record.task} ended, branch {record.branch}, step {record.step}": record.weights
        for record in timeline.records(TaskEnded)
    }
    taken = {
        f"checkpoint {record.checkpoint}, branch {record.branch}, step {record.step}": record.sums
        for record in timeline.records(CheckpointTaken)
        if record.sums  # earlier versions told fingerprints there, which are not made any more
    }
    return {**ended, **taken}


def _of_file(path: Path) -> str:
    return tensor_fingerprint(dict(sorted(load_file(path).items())))  # in any order they may lie in a file
