"""What a person has of a run: how it is made, started, looked at, and what it has learned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rehearsal_kit.base.errors import SessionError, SettingsError
from rehearsal_kit.base.limits import require_integer, require_switch
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.protocol import RunOrder
from rehearsal_kit.cluster.workers import ranks_of
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.module_state import on_cpu
from rehearsal_kit.learning.onnx_export import export_onnx
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_check import given_again, known_tasks, require_sound
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec, keep_spec, packed_spec, stored_ranks
from rehearsal_kit.record.preview_files import Preview
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.handle import Handle, Origin
from rehearsal_kit.session.run_connection import new_topic
from rehearsal_kit.session.trained_network import TrainedNetwork
from rehearsal_kit.session.trial import check_run

if TYPE_CHECKING:
    import pandas as pd

NOT_BY_ITSELF = (
    "The job that follows this one has no kernel, so it cannot go on with the run by itself: once it is "
    "there, resume the run from here."
)


class Session(Handle):
    """One run on one cluster. Commands are checked and numbered here, and written down by the coordinator."""

    def __init__(  # noqa: PLR0913 - one for each kind of settings
        self,
        cluster: Cluster,
        *,
        run: str | Path,
        strategy: Strategy,
        network: torch.nn.Module,
        seed: int = 0,
        preparation: Preparation | None = None,
        training: Training | None = None,
        rehearsal: Rehearsal | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        seed = require_integer("seed", seed, low=0)
        spec = RunSpec(
            run=RunFolder(run),
            seed=seed,
            network=network,
            strategy=strategy,
            preparation=preparation or Preparation(),
            training=training or Training(),
            rehearsal=rehearsal or Rehearsal(),
            recovery=recovery or Recovery(),
        )
        require_sound(spec, network)
        spec = replace(spec, network=on_cpu(network))
        if asked := given_again(network, strategy):  # now, while its code is at hand
            alone = f" {NOT_BY_ITSELF}" if cluster.goes_on else ""
            warnings.warn(f"{asked}{alone}", stacklevel=2)
        spec.run.create()
        try:
            ranks = ranks_of(cluster)
            fewest = spec.recovery.fewest
            if fewest is not None and fewest > ranks:  # it would fail with the first worker that is lost
                raise SettingsError(
                    f"fewest is {fewest}, and this cluster has {ranks} workers; give "
                    f"Recovery(fewest=...) at most {ranks}, or start a larger cluster."
                )
            keep_spec(spec, ranks=ranks)
            super().__init__(Origin(cluster, spec, spec.network, ranks=ranks, is_new=True))
        except BaseException:
            spec.run.discard()
            raise

    def check(self) -> None:
        """Try out what the ranks will do, in this kernel and on one worker; `start` calls it. Takes seconds.

        One dry step on samples of the first tasks submitted, or lying in a watched folder; without any,
        only whether workers can read what they will be sent. What it was steered to before the start is
        tried as well. SettingsError for what cannot be trained, or cannot take effect.
        """
        tasks = known_tasks(self._first) if self._is_new else []
        check_run(self.cluster, self._settings, tasks, steers=self._steered)

    def start(self) -> None:
        """Check the run, then start one rank on every worker, which goes on without this kernel.

        SettingsError, as from `check`, for what cannot be trained; the folder of a new run is then free
        again for a corrected Session(...).
        """
        if self.state == "created":
            try:
                self.check()
            except SettingsError:
                self._discard()
                raise
        self._is_new = False
        order = RunOrder(
            topic=new_topic(),
            run=str(self.run.path),
            spec=packed_spec(self._settings),
            ranks=self.ranks,
            device=self.cluster.address.kind,
            shared_gpus=self.cluster.address.shared_gpus,
            place=self.cluster.place,
            recovery=self._settings.recovery,
        )
        self._run_connection.start(order)

    def preview(self, task: int | None = None, *, trained: bool = False) -> Preview | None:
        """A held-out pattern of a task and what the network makes of it now; None before there is one.

        Asks rank 0, which takes a few milliseconds; task None means the newest. trained: what the weights in
        training make of it, also where an average of them predicts (`Training(average=...)`). SettingsError
        for what is no number of a task.
        """
        if task is not None:
            task = require_integer("task", task, low=0)
        trained = require_switch("trained", trained)
        return self._run_connection.preview((task, trained))

    def network(self) -> torch.nn.Module:
        """The network with the weights of the last task that ended, on the CPU, in evaluation mode; a copy.

        SessionError before any task has ended.
        """
        return self._trained().network

    def predict(self, frames: Any, *, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What that network makes of counts (sample, row, column) or inputs (sample, ...): float32, by field.

        frames: an array, or what gives one by slices, such as a dataset of h5py: of a long scan one block is
        in memory at a time. out: by field, what it is written to by slices, such as a `numpy.memmap` or a
        dataset; None: new arrays.
        """
        return self._trained().predict(frames, out=out)

    def table(self, branch: int | None = None) -> pd.DataFrame:
        """One row per task: test errors before, when learned, now, all metrics, and why a task was set aside.

        branch: of a run that was rolled back; None: the newest.
        """
        from rehearsal_kit.session import tables  # noqa: PLC0415 - pandas takes half a second of every kernel

        return tables.results_table(self.timeline, branch)

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint that is whole on disk: branch, step, mean watched error, bytes, time."""
        from rehearsal_kit.session import tables  # noqa: PLC0415 - as above

        return tables.checkpoints_table(self.timeline)

    def export(self, path: str | Path) -> Path:
        """Write that network with its preparation as ONNX, checked in onnxruntime against torch.

        Needs the extra `onnx`. ExportError if that cannot be done.
        """
        trained = self._trained()
        return export_onnx(trained.prepared, path, example=trained.example())

    def _trained(self) -> TrainedNetwork:
        if self._network is None:
            again = f"rk.attach({str(self.run.path)!r}, network=...)"
            raise SessionError(
                f"the network of this run is not stored in its folder; give it again: {again}."
            )
        return TrainedNetwork(self.run, self._network)


class ContinuedSession(Session):
    """A session of a run whose folder was there before: made of what that says, not of new settings."""

    def __init__(self, origin: Origin) -> None:
        Handle.__init__(self, origin)

    @classmethod
    def attached(
        cls, cluster: Cluster, settings: RunSettings, network: torch.nn.Module | None, *, take: bool
    ) -> Session:
        """A handle on a run that goes on already; what `rk.attach` returns.

        cluster: a connection of this session's own.
        """
        ranks = stored_ranks(settings.run)
        session = cls(Origin(cluster, settings, network, ranks=ranks, owns_connection=True))
        session._run_connection.attach(take=take)
        return session

    @classmethod
    def resumed(cls, cluster: Cluster, spec: RunSpec) -> Session:
        """A handle on a run that is to be started in its folder; what `rk.resume` returns."""
        session = cls(Origin(cluster, spec, spec.network, ranks=ranks_of(cluster)))
        session._run_connection.history.catch_up()
        return session
