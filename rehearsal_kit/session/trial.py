"""Whether a run can be trained, tried out before it begins: in this kernel and on one worker."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rehearsal_kit.base.errors import SessionError, SettingsError
from rehearsal_kit.buffer.memory_limit import available_bytes
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import ask_workers, within
from rehearsal_kit.cluster.worker_check import check_on_worker
from rehearsal_kit.cluster.workers import known_workers, ranks_of, workers_in_order
from rehearsal_kit.rank.going_on import GoingOn
from rehearsal_kit.rank.run_check import CHECKED, dry_run
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec, packed_spec
from rehearsal_kit.record.commands import Arrived, Steer

CHECK_S = 60.0
"""What a worker has to import what it is sent, and to take two steps on a few samples."""


def check_run(
    cluster: Cluster, settings: RunSettings, tasks: Sequence[Arrived], *, steers: Sequence[Steer] = ()
) -> None:
    """SettingsError, in words, for a run that could train none of these tasks; changes nothing.

    steers: what it is steered to before the first new step; tried, too, on tasks of its folder where `tasks`
    has none.

    Where the workers have GPUs only one of them is asked: a network may need what this kernel has not.
    SessionError if no worker answers in time, or the cluster is gone.
    """
    if steers:
        going_on = _steered(cluster, settings, steers)
        tasks, live = tasks or going_on.tasks[:CHECKED], going_on.live_settings
        settings = replace(settings, strategy=live.strategy, training=live.training, rehearsal=live.rehearsal)
    packed = packed_spec(settings)
    spec = pickle.loads(packed)  # noqa: S301 - made in the line above
    # The worker takes the steps as well: a kernel that takes none has not to import what that takes.
    here = isinstance(spec, RunSpec) and cluster.address.kind == "cpu"
    if here and (reason := dry_run(spec, tasks, optimizer=False)):
        raise SettingsError(f"this run cannot be trained: {reason}")
    if reason := _asked(cluster, packed, tasks):
        raise SettingsError(f"this run cannot be trained on the workers: {reason}")


def _steered(cluster: Cluster, settings: RunSettings, steers: Sequence[Steer]) -> GoingOn:
    """What the run goes on with after these commands; SettingsError for the first that cannot be."""
    going_on = GoingOn.of(settings)
    for command in steers:
        try:
            going_on = going_on.steered(command)
            going_on.require_room(ranks_of(cluster), lambda: _machines(cluster))
        except SettingsError as error:
            raise SettingsError(f"{command!r} cannot take effect: {error} Nothing was started.") from error
    return going_on


def _machines(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """How many workers each machine has, and how many bytes their buffers can still take there."""
    hosts = {address: worker["host"] for address, worker in known_workers(cluster).items()}
    one_of_each = {host: address for address, host in hosts.items()}
    told = ask_workers(cluster.client, available_bytes, workers=[*one_of_each.values()])
    count = Counter(hosts.values())
    return {host: (count[host], int(told[address])) for host, address in one_of_each.items()}


def _asked(cluster: Cluster, packed: bytes, tasks: Sequence[Arrived]) -> str:
    client: Any = cluster.client
    try:
        workers = workers_in_order(cluster)[:1]
        if not workers:  # they may come later
            return ""
        answers: dict[str, str] = within(
            client,
            CHECK_S,
            client._run,
            check_on_worker,
            packed,
            tasks,
            device=cluster.address.kind,
            workers=workers,
            gone=lambda: cluster.has_ended,
        )
    except TimeoutError as error:
        if cluster.has_ended:
            raise SessionError("the cluster has ended; start another one, and then this run.") from error
        raise SessionError(
            f"no worker has answered the check of this run for {CHECK_S:.0f} s; are they frozen? Look at "
            "them, or start another cluster, and then this run."
        ) from error
    except OSError as error:
        raise SessionError(f"the cluster cannot be reached; was it stopped? {error}") from error
    return answers[workers[0]]
