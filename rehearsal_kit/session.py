"""The kernel's handle on a run: start, watch, steer, wait, close. No call blocks the notebook but `wait`."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import math
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch

from rehearsal_kit.cluster import Cluster
from rehearsal_kit.commands import (
    Arrived,
    Command,
    FinishStream,
    Pause,
    Resume,
    Steer,
    Stop,
    Watch,
    Wish,
    to_plain,
)
from rehearsal_kit.driver import ENDED, LOOK_S, Driver
from rehearsal_kit.errors import RankError, ScanError, SessionError
from rehearsal_kit.exporting import export_onnx
from rehearsal_kit.job import Job, keep_job
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.preview import Preview
from rehearsal_kit.results import TrainedNetwork, results_table
from rehearsal_kit.run_folder import Ledger, RunFolder
from rehearsal_kit.settings import Rehearsal, Training, require_integer
from rehearsal_kit.strategies.choice import require_suited, steer_to
from rehearsal_kit.strategies.strategy import Strategy
from rehearsal_kit.telemetry import Applied
from rehearsal_kit.tensor_tasks import TensorTask, write_task
from rehearsal_kit.timeline import Timeline


class Session:
    """One run on one cluster. Commands are validated here, numbered, written down, and sent to rank 0."""

    def __init__(
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
    ) -> None:
        require_integer("seed", seed, low=0)
        self.cluster = cluster
        self.strategy = strategy
        self.training = training or Training()
        self.rehearsal = rehearsal or Rehearsal()
        require_suited(strategy, self.rehearsal)
        self.timeline = Timeline()
        self.panel: Any = None
        """The one dashboard of this session, once it was asked for."""
        self.run = RunFolder(run).create()
        self._job = Job(
            run=self.run,
            seed=seed,
            network=network,
            strategy=strategy,
            preparation=preparation or Preparation(),
            training=self.training,
            rehearsal=self.rehearsal,
        )
        self._driver = Driver(cluster, self._job, self.timeline)
        keep_job(self._job, ranks=self.ranks)
        self._wishes = Ledger(self.run.wishes, durable=True)
        self._numbering = threading.Lock()
        self._number = 0
        self._answered = ""
        """The trouble after which somebody has said how to go on; the ranks may not have heard it yet."""

    def __repr__(self) -> str:
        return (
            f"Session({type(self.strategy).__name__}, {self.state}, {self.ranks} ranks, run {self.run.path})"
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ranks(self) -> int:
        """How many ranks train: one per worker of the cluster."""
        return self._driver.ranks

    @property
    def state(self) -> str:
        """created, starting, waiting, running, paused, finished, stopped or failed."""
        return self._driver.state

    @property
    def error(self) -> str:
        """Why the run failed; empty unless it did."""
        return self._driver.error

    @property
    def trouble(self) -> str:
        """Why the ranks have paused on their own, and what may help; empty if they have not."""
        return self._driver.trouble

    @property
    def over(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self._driver.over.is_set()

    # Steering -------------------------------------------------------------------------------------------

    def submit(self, task: str | Path | Arrived | TensorTask) -> int:
        """A task for the stream: a file, an `Arrived` that tells which part of a scan, or own tensors.

        Returns its number. Tensors are written to the run folder once. The ranks open the file at their next
        step boundary; if one of them cannot, it is set aside with the reason and the run goes on.
        """
        self._require_going(Arrived)
        if isinstance(task, TensorTask):
            return self._wish(write_task(task, self.run.new_task()))
        if not isinstance(task, Arrived):
            path = Path(task).expanduser().absolute()
            task = Arrived(name=path.stem, path=str(path))
        return self._wish(task)

    def watch(self, pattern: str, *, existing: bool = True) -> int:
        """Every file that matches, now or later, becomes a task, in natural order of names.

        existing: whether files that match already count too; where nothing matches yet but the folder is
        missing, a ScanError says so.
        """
        absolute = str(Path(pattern).expanduser().absolute())
        parent = Path(absolute).parent
        if not glob.has_magic(str(parent)) and not parent.is_dir():
            raise ScanError(f"cannot watch {absolute}: the folder {parent} does not exist on this machine.")
        return self._wish(Watch(pattern=absolute, existing=existing))

    def finish_stream(self) -> int:
        """No more tasks: the run ends when those that have arrived are trained."""
        return self._wish(FinishStream())

    def steer(
        self,
        *,
        learning_rate: float | None = None,
        representatives: int | None = None,
        capacity: int | None = None,
        distillation: int | None = None,
        strategy: Strategy | None = None,
    ) -> int:
        """Change settings at the next step boundary, on all ranks at the same step or on none.

        Returns the number of the wish; `timeline` has an `Applied` record of each rank with that number
        and the step. SettingsError if a value is not allowed. strategy: one of ours with its weights, such as
        DERpp(alpha=0.3); the loss of the run stays.
        """
        wanted = Steer(
            learning_rate=learning_rate,
            representatives=representatives,
            capacity=capacity,
            distillation=distillation,
            **({} if strategy is None else steer_to(strategy)),
        )
        return self._wish(wanted)

    def acknowledged(self, number: int) -> list[Applied]:
        """What the ranks said of the wish with this number, in order of rank; in the end one record each."""
        said = (applied for applied in self.timeline.records(Applied) if applied.number == number)
        return sorted(said, key=lambda applied: applied.rank)

    def pause(self) -> int:
        """Take no more steps until `resume`; the ranks stay ready."""
        return self._wish(Pause())

    def resume(self) -> int:
        """Go on after a pause."""
        self._answered = self.trouble
        return self._wish(Resume())

    def stop(self) -> int:
        """End the run at the next step boundary."""
        self._answered = self.trouble
        return self._wish(Stop())

    # Life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start one rank on every worker; returns at once."""
        self._driver.start()

    def wait(self, timeout: float | None = None) -> str:
        """Block until the run is over; returns "finished" or "stopped". For scripts.

        Raises RankError with the first error of the first rank that failed, or with the trouble for which
        the ranks have paused (steer and resume, then wait again; or close); TimeoutError after `timeout`
        seconds; SessionError inside a running event loop, which it would block: there, `await done()`. An
        interrupt ends the waiting, not the run.
        """
        self._require_started()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise SessionError("wait() would block this notebook; write `await session.done()`.")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self._driver.over.wait(min(LOOK_S, max(0.0, deadline - time.monotonic()))):
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
        """Stop the run if it goes on, and let go of everything but the cluster and the run folder."""
        going = self.state not in ("created", *ENDED)
        self._driver.close(self._send(Stop()) if going else None)
        self._wishes.close()
        if self.panel is not None:  # last, so that it shows how the run ended
            self.panel.close()

    def preview(self, task: int | None = None) -> Preview | None:
        """A held-out pattern of a task and what the network makes of it now; None before there is one.

        Asks rank 0, which takes a few milliseconds; task None means the newest.
        """
        return self._driver.preview(task)

    # Results --------------------------------------------------------------------------------------------

    def network(self) -> torch.nn.Module:
        """The network with the weights of the last task that ended, on the CPU, in evaluation mode; a copy.

        SessionError before any task has ended.
        """
        return self._trained().network

    def predict(self, frames: Any) -> dict[str, Any]:
        """What that network makes of counts (sample, row, column) or inputs (sample, ...): NumPy arrays."""
        return self._trained().predict(frames)

    def table(self) -> pd.DataFrame:
        """One row per task: test errors before, when learned and now, and all metrics."""
        return results_table(self.timeline)

    def export(self, path: str | Path) -> Path:
        """Write that network with its preparation as ONNX, checked in onnxruntime against torch.

        Needs the extra `onnx`. ExportError if that cannot be done.
        """
        trained = self._trained()
        return export_onnx(trained.prepared, path, example=trained.example())

    # Inside ---------------------------------------------------------------------------------------------

    def _wish(self, command: Command) -> int:
        self._require_going(type(command))
        return self._send(command).number

    def _send(self, command: Command) -> Wish:
        with self._numbering:
            self._number += 1
            wish = Wish(self._number, command)
            self._wishes.append({"time": time.time(), **to_plain(wish)})
            self._driver.send(wish)
        return wish

    def _require_going(self, kind: type) -> None:
        if self.over:
            raise SessionError(f"{kind.__name__} came too late: this run is {self.state}.")

    def _trained(self) -> TrainedNetwork:
        return TrainedNetwork(self.run, self._job.network)

    def _require_no_trouble(self) -> None:
        trouble = self.trouble
        if trouble and trouble != self._answered:
            raise RankError(trouble)

    def _require_started(self) -> None:
        if self.state == "created":
            raise SessionError(
                "this run was not started, so there is no end to wait for; call start() first."
            )

    def _verdict(self) -> str:
        if self.state == "failed":
            raise RankError(self.error)
        return self.state
