"""Back to a run from another kernel: while its cluster lives, or on a new one from its last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.base.errors import ClusterGoneError, LeaseError, RunFolderError, SettingsError
from rehearsal_kit.cluster.cluster import Cluster, reach
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec, read_network, read_settings
from rehearsal_kit.record.effects import has_ended
from rehearsal_kit.record.lease import require_free
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.session import ContinuedSession, Session


def attach(
    run: str | Path,
    *,
    take: bool = False,
    network: torch.nn.Module | None = None,
    strategy: Strategy | None = None,
) -> Session:
    """The session of a run that goes on, from any kernel of the same user on this file system.

    Its curves are complete: from the files of the run, then from what is told. The kernel steers if no other
    does; take: steer from here, the other one only watches from then on.

    network, strategy: needed only where they are not of this package, or the network was altered after it was
    made: the network for `session.network()` and what is made of it.

    Raises:
        RunFolderError: this is not the folder of a run, or not private.
        ClusterGoneError: the cluster is gone; `resume` goes on with the run on another one.
        LeaseError: the cluster does not answer from here, but may be alive; says where it is.
        SessionError: the cluster does not know the run (any more).
    """
    folder = _folder(run)
    settings = read_settings(folder, strategy)
    try:
        known: torch.nn.Module | None = read_network(folder, network)
    except RunFolderError:
        if network is not None:
            raise
        known = None
    try:
        return _joined(settings, known, take=take)
    except ClusterGoneError:
        # What does not answer from here may train there: nobody must be told to start it once more.
        try:
            require_free(folder)
        except LeaseError as held:
            raise LeaseError(f"{held} Its cluster has not answered from here just now.") from held
        raise


def resume(
    run: str | Path,
    cluster: Cluster,
    *,
    network: torch.nn.Module | None = None,
    strategy: Strategy | None = None,
    steer: Mapping[str, Any] | None = None,
) -> Session:
    """The session of a run that had ended or lost its cluster, started again from its last checkpoint.

    Whatever took effect after that checkpoint takes effect again at the same steps; on the same number of
    workers the weights are those of a run that was never interrupted. On another number, or where data are
    gone, the run goes on as another branch: the samples of the buffers are dealt out anew, and what people
    decided after that checkpoint is decided again. A run that was stopped goes on with its tasks; one that
    had finished waits for more.

    network, strategy: needed where they are not of this package, or the network was altered after it was
    made; the session that began the run has warned of that.

    steer: settings by name, as `Session.steer` takes them, that are in force before the first new step, such
    as {"batch": 8} where a larger one did not fit the memory of a GPU.

    Raises:
        SettingsError: a name in `steer`, or a value, that no run allows, or that does not go with what this
            run goes on with, such as a policy with the removal in force or more samples than fit into memory.
            Nothing is started then, and the run can be resumed with other values.
        RunFolderError: this is not the folder of a run, not private, or of another network.
        LeaseError: the run is under way, on this cluster or another; says where, and how to join it.
    """
    steer = _named("steer", steer)
    folder = _folder(run)
    require_free(folder)
    settings = read_settings(folder, strategy)
    spec = RunSpec(**vars(settings), network=read_network(folder, network))
    session = ContinuedSession.resumed(cluster, spec)
    if has_ended(folder):
        session.reopen()
    if steer:
        session.steer(**steer)
    session.start()
    return session


def _named(what: str, settings: object) -> Mapping[str, Any]:
    """Settings by name; SettingsError for what is no mapping of them."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise SettingsError(
            f"{what} is {settings!r:.80}; it must be a dictionary of settings by name, such as "
            '{"batch": 8, "representatives": 4}.'
        )
    return settings


def _folder(run: str | Path) -> RunFolder:
    folder = RunFolder(run)
    if not folder.settings.exists():
        raise RunFolderError(f"{folder.path} is not the folder of a run: it has no {folder.settings.name}.")
    folder.require_private()
    return folder


def _joined(settings: RunSettings, network: torch.nn.Module | None, *, take: bool) -> Session:
    cluster = reach(_place(settings.run))
    try:
        return ContinuedSession.attached(cluster, settings, network, take=take)
    except BaseException:
        cluster.disconnect()  # nobody else knows of this connection; it would keep the cluster from idling
        raise


def _place(folder: RunFolder) -> dict[str, str]:
    try:
        place: dict[str, str] = json.loads(folder.cluster.read_text())
    except FileNotFoundError as error:
        raise RunFolderError(
            f"run {folder.path} has not begun on any cluster yet: look again in a moment, or call start() of "
            "the session that has made it."
        ) from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"run {folder.path} does not say on which cluster it is: {error}.") from error
    return place
