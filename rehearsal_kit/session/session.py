"""The kernel's handle on a run: start, watch, steer, wait, close. No command waits for the ranks."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch

from rehearsal_kit.base.errors import RankError, SessionError, SettingsError, TaskError
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training, require_integer
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.protocol import RunOrder
from rehearsal_kit.cluster.workers import known_workers
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.learning.onnx_export import export_onnx
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.rank.run_check import CHECKED, given_again, known_tasks, require_sound
from rehearsal_kit.rank.run_spec import RunSettings, RunSpec, keep_spec, packed_spec, stored_ranks
from rehearsal_kit.record.commands import Arrived, Command, Reopen, Resume, Stop, Watch, Wish
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.preview_files import Preview
from rehearsal_kit.record.records import Applied, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.run_states import ENDED
from rehearsal_kit.session.results import TrainedNetwork, checkpoints_table, left_out, results_table
from rehearsal_kit.session.run_connection import LOOK_S, RunConnection, new_topic
from rehearsal_kit.session.steering import Steering
from rehearsal_kit.session.trial import check_run


class Session(Steering):
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
        require_integer("seed", seed, low=0)
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
        if asked := given_again(network):  # now, while its code is at hand
            warnings.warn(asked, stacklevel=2)
        spec.run.create()
        try:
            self._begin(cluster, spec)
        except BaseException:
            spec.run.discard()
            raise
        self._is_new = True

    @classmethod
    def of(cls, cluster: Cluster, spec: RunSpec) -> Session:
        """A session of a job whose run folder is new."""
        session = cls.__new__(cls)
        session._begin(cluster, spec)
        return session

    @classmethod
    def attached(
        cls, cluster: Cluster, settings: RunSettings, network: torch.nn.Module | None, *, take: bool
    ) -> Session:
        """A handle on a run that goes on already; what `rk.attach` returns."""
        session = cls.__new__(cls)
        session._take_on(cluster, settings, network, ranks=stored_ranks(settings.run))
        session._run_connection.attach(take=take)
        return session

    @classmethod
    def resumed(cls, cluster: Cluster, spec: RunSpec) -> Session:
        """A handle on a run that is started again; what `rk.resume` returns."""
        session = cls.__new__(cls)
        session._take_on(cluster, spec, spec.network, ranks=len(known_workers(cluster)))
        session._run_connection.history.catch_up()
        return session

    def _begin(self, cluster: Cluster, spec: RunSpec) -> None:
        ranks = len(known_workers(cluster))
        keep_spec(spec, ranks=ranks)
        self._take_on(cluster, spec, spec.network, ranks=ranks)

    def _take_on(
        self, cluster: Cluster, settings: RunSettings, network: torch.nn.Module | None, *, ranks: int
    ) -> None:
        self.cluster = cluster
        self.run = settings.run
        self.strategy, self.training, self.rehearsal = (
            settings.strategy,
            settings.training,
            settings.rehearsal,
        )
        self.ranks = ranks
        """How many ranks train: one per worker of the cluster."""
        self.panel: Any = None
        """The one dashboard of this session, once it was asked for."""
        self._settings = settings
        self._network = network
        self._is_new = False
        """Whether this session has made the run folder, and nothing was started in it."""
        self._first: list[Arrived | Watch] = []
        """The first tasks asked for, for the check."""
        self._run_connection = RunConnection(cluster, settings.run)
        self.timeline = self._run_connection.timeline
        self._numbering = threading.Lock()
        self._number: int | None = None
        """Number of the newest wish; None before the first."""
        self._told = ""
        """What `wait` has said already of wishes that were not accepted."""
        self._answered = ""
        """The trouble after which somebody has said how to go on; the ranks may not have heard it yet."""

    def __repr__(self) -> str:
        what = f"{type(self.strategy).__name__}, {self.state}, {self.ranks} ranks"
        return f"Session({what}, run {self.run.path})"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> str:
        """created, starting, waiting, running, paused, recovering, finished, stopped, failed or left.

        Or interrupted: the cluster ended, and `rk.resume` goes on from where the run was.
        """
        return self._run_connection.state

    @property
    def leads(self) -> bool:
        """Whether this kernel may steer the run; if not, another one does, and this one watches."""
        return self._run_connection.leads

    @property
    def holder(self) -> str:
        """The name of this kernel among those that steer the run; records of its wishes carry it."""
        return self._run_connection.holder

    @property
    def refused(self) -> str:
        """Which wishes of this kernel were not accepted last, and why; empty if all were."""
        return self._run_connection.refused

    @property
    def error(self) -> str:
        """Why the run failed, or how to go on after its cluster ended; else empty."""
        return self._run_connection.error

    @property
    def trouble(self) -> str:
        """Why the ranks have paused on their own, and what may help; empty if they have not."""
        return self._run_connection.trouble

    @property
    def over(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self._run_connection.over.is_set()

    # Answers --------------------------------------------------------------------------------------------

    def checkpoints(self) -> pd.DataFrame:
        """One row per checkpoint that is whole on disk: branch, step, mean watched error, bytes, time."""
        return checkpoints_table(self.timeline)

    def acknowledged(self, number: int) -> list[Applied]:
        """What the ranks said of this kernel's wish of this number, in order of rank; one each in the end."""
        applied = self.timeline.records(Applied)
        said = {r.rank: r for r in applied if (r.number, r.holder) == (number, self.holder)}
        return [said[rank] for rank in sorted(said)]

    def resume(self) -> int:
        """Go on after a pause."""
        self._answered = self.trouble
        return self._wish(Resume())

    def reopen(self) -> int:
        """Let a run that was stopped or finished go on once it is started again."""
        return self._send(Reopen()).number

    def stop(self) -> int:
        """End the run at the next step boundary."""
        self._answered = self.trouble
        return self._wish(Stop())

    # Life -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Try out what the ranks will do, in this kernel and on one worker; `start` calls it. Takes seconds.

        One dry step on samples of the first tasks submitted, or lying in a watched folder; without any,
        only whether workers can read what they will be sent. SettingsError for what cannot be trained.
        """
        check_run(self.cluster, self._settings, known_tasks(self._first) if self._is_new else [])

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
        recovery = self._settings.recovery
        order = RunOrder(
            topic=new_topic(),
            run=str(self.run.path),
            spec=packed_spec(self._settings),
            ranks=self.ranks,
            place=self.cluster.place,
            restarts=recovery.restarts,
            stall_s=recovery.stall_s,
            wait_s=recovery.wait_s,
        )
        self._run_connection.start(order)

    def wait(self, timeout: float | None = None) -> str:
        """Block until the run is over; returns "finished", "stopped" or "interrupted". For scripts.

        Interrupted: its cluster ended before it did; `rk.resume` goes on. An interrupt from the keyboard ends
        the waiting, not the run. Raises RankError with the first error of the first rank that failed, or with
        the trouble for which the ranks have paused (steer and resume, then wait again; or close); TaskError
        where nothing was trained, because all tasks were set aside (a warning names those that were beside
        trained ones); TimeoutError after `timeout` seconds; SessionError once for a wish that was not
        accepted, and inside a running event loop, which it would block: there, `await done()`.
        """
        self._require_started()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise SessionError("wait() would block this notebook; write `await session.done()`.")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._run_connection.over.wait(min(LOOK_S, max(0.0, deadline - time.monotonic()))):
            self._require_no_trouble()
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the run is still {self.state} after {timeout} s; it goes on.")
        return self._verdict()

    async def done(self) -> str:
        """Wait until the run is over without blocking the notebook; returns and raises like `wait`."""
        self._require_started()
        while not self.over:
            self._require_no_trouble()
            await asyncio.sleep(0.1)
        return self._verdict()

    def close(self) -> None:
        """Stop the run if it goes on and this kernel steers it, wait for that, and let go of it."""
        stop = None
        with contextlib.suppress(SessionError):  # it has ended this moment
            if self.leads and self.state not in ("created", "left", *ENDED):
                stop = self._send(Stop())
        self._run_connection.close(stop)
        self._let_go()

    def leave(self) -> None:
        """Let go of a run that goes on; any kernel may steer it then, by `rk.attach`."""
        self._run_connection.close(None)
        self._let_go()

    def _let_go(self) -> None:
        if self.panel is not None:  # last, so that it shows how the run ended
            self.panel.close()

    def preview(self, task: int | None = None) -> Preview | None:
        """A held-out pattern of a task and what the network makes of it now; None before there is one.

        Asks rank 0, which takes a few milliseconds; task None means the newest.
        """
        return self._run_connection.preview(task)

    # Results --------------------------------------------------------------------------------------------

    def network(self) -> torch.nn.Module:
        """The network with the weights of the last task that ended, on the CPU, in evaluation mode; a copy.

        SessionError before any task has ended.
        """
        return self._trained().network

    def predict(self, frames: Any) -> dict[str, Any]:
        """What that network makes of counts (sample, row, column) or inputs (sample, ...): NumPy arrays."""
        return self._trained().predict(frames)

    def table(self, branch: int | None = None) -> pd.DataFrame:
        """One row per task: test errors before, when learned, now, all metrics, and why a task was set aside.

        branch: of a run that was rolled back; None: the newest.
        """
        return results_table(self.timeline, branch)

    def export(self, path: str | Path) -> Path:
        """Write that network with its preparation as ONNX, checked in onnxruntime against torch.

        Needs the extra `onnx`. ExportError if that cannot be done.
        """
        trained = self._trained()
        return export_onnx(trained.prepared, path, example=trained.example())

    # Inside ---------------------------------------------------------------------------------------------

    def _discard(self) -> None:
        """Give up a run that was never started, and leave its folder free."""
        self._run_connection.close(None)
        self._let_go()
        if self._is_new:
            self.run.discard()

    def _wish(self, command: Command) -> int:
        self._require_going(type(command))
        if isinstance(command, Arrived | Watch) and len(self._first) < CHECKED:
            self._first.append(command)
        return self._send(command).number

    def _send(self, command: Command) -> Wish:
        self._require_not_over(type(command))
        if isinstance(command, Arrived):
            command = replace(command, path=self.run.inside(Path(command.path).absolute()))
        with self._numbering:
            if self._number is None:  # people tell wishes of several kernels apart by their numbers, too
                self._number = max((entry["number"] for entry in read_ledger(self.run.wishes)), default=0)
            self._number += 1
            wish = Wish(self._number, command)
            self._run_connection.send(wish)
        return wish

    def _require_going(self, kind: type) -> None:
        self._require_not_over(kind)
        if not self.leads:
            here = f"rk.attach({str(self.run.path)!r}, take=True)"
            raise SessionError(f"another kernel steers this run; to steer from here: {here}.")

    def _require_not_over(self, kind: type) -> None:
        if self.over:
            again = f"rk.resume({str(self.run.path)!r}, cluster)"
            raise SessionError(f"{kind.__name__} came too late: this run is {self.state}. To go on: {again}.")

    def _trained(self) -> TrainedNetwork:
        if self._network is None:
            again = f"rk.attach({str(self.run.path)!r}, network=...)"
            raise SessionError(
                f"the network of this run is not stored in its folder; give it again: {again}."
            )
        return TrainedNetwork(self.run, self._network)

    def _require_no_trouble(self) -> None:
        if self.refused != self._told:  # who waits would wait for what was never asked
            self._told = self.refused
            raise SessionError(self.refused)
        if (trouble := self.trouble) not in ("", self._answered):
            raise RankError(trouble)

    def _require_started(self) -> None:
        if self.state == "created":
            raise SessionError("this run was not started, so it has no end to wait for; call start() first.")

    def _verdict(self) -> str:
        if self.state == "failed":
            raise RankError(self.error)
        if aside := left_out(self.timeline):
            if self.state == "finished" and self.timeline.last(TaskEnded) is None:
                raise TaskError(f"nothing was trained: {aside}")
            warnings.warn(f"{aside} session.table() has all of them.", stacklevel=3)
        return self.state
