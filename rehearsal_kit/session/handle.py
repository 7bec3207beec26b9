"""The kernel's hold on one run: its state, numbering and sending wishes, waiting, and letting go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch

from rehearsal_kit.base.errors import RankError, SessionError, SettingsError, TaskError
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.rank.run_check import CHECKED
from rehearsal_kit.rank.run_spec import RunSettings
from rehearsal_kit.record.answers import answers
from rehearsal_kit.record.commands import Arrived, Command, Resume, Steer, Stop, Watch, Wish
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.rank_records import GenerationBegan
from rehearsal_kit.record.records import Applied, TaskEnded
from rehearsal_kit.record.run_states import ENDED
from rehearsal_kit.session.left_out import left_out
from rehearsal_kit.session.run_connection import LOOK_S, RunConnection
from rehearsal_kit.session.steering import Steering

LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """What a session is made of, however it comes to its run."""

    cluster: Cluster
    settings: RunSettings
    network: torch.nn.Module | None
    """None where it is neither one of ours nor was given."""
    ranks: int
    is_new: bool = False
    """Whether the run folder was made for this session."""
    owns_connection: bool = False
    """Whether the connection to the cluster was made for this session, and nobody else holds it."""


class Handle(Steering):
    """All of a session that does not depend on how it was made. Its attributes are made here, all of them."""

    def __init__(self, origin: Origin) -> None:
        settings = origin.settings
        self.cluster = origin.cluster
        self.run = settings.run
        self.strategy, self.training = settings.strategy, settings.training
        self.rehearsal = settings.rehearsal
        self._ranks = origin.ranks
        """How many it is started with: one per worker of the cluster."""
        self._settings = settings
        self._network = origin.network
        self._is_new = origin.is_new
        """Whether this session has made the run folder, and nothing was started in it."""
        self._owns_connection = origin.owns_connection
        self._first: list[Arrived | Watch] = []
        """The first tasks asked for, for the check."""
        self._steered: list[Steer] = []
        """What was steered to before the start, for the check."""
        self._run_connection = RunConnection(origin.cluster, settings.run)
        self.timeline = self._run_connection.timeline
        self._numbering = threading.Lock()
        self._number: int | None = None
        """Number of the newest wish; None before the first."""
        self._told = ""
        """What `wait` has said already of wishes that were not accepted."""
        self._answered = ""
        """The trouble after which somebody has said how to go on; the ranks may not have heard it yet."""
        self._on_close: list[Callable[[], object]] = []

    def __repr__(self) -> str:
        what = f"{type(self.strategy).__name__}, {self.state}, {self.ranks} ranks"
        return f"Session({what}, run {self.run.path})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> str:
        """created, starting, waiting, running, paused, recovering, finished, stopped, failed or left.

        Or interrupted: the cluster ended, and `rk.resume` goes on from where the run was; moving, where
        another job goes on with it by itself, and this session with it, once its turn has come.
        """
        return self._run_connection.state

    @property
    def ranks(self) -> int:
        """How many ranks train: one per worker of the cluster, or fewer, as `Recovery(fewest=...)` allows."""
        began = None if self.state == "created" else self._run_connection.newest(GenerationBegan)
        return self._ranks if began is None else len(began.workers)

    @property
    def leads(self) -> bool:
        """Whether this kernel may steer the run; if not, another one does, and this one watches."""
        return self._run_connection.leads

    @property
    def holders(self) -> tuple[str, ...]:
        """The names of this kernel among those that steer the run; records of its wishes carry one of them.

        One for each job in which the run has been.
        """
        return tuple(self._run_connection.holders)

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

    def acknowledged(self, number: int) -> list[Applied]:
        """What the ranks said of this kernel's wish of this number, in order of rank; one each in the end.

        Each says how many `ranks` they are: another number of them may train by now.
        """
        return answers(self.timeline.records(Applied), number, self.holders)

    # Waiting and letting go -----------------------------------------------------------------------------

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
            self._require_no_trouble(self.refused, self.trouble)
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the run is still {self.state} after {timeout} s; it goes on.")
        return self._verdict()

    async def done(self) -> str:
        """Wait until the run is over without blocking the notebook; returns and raises like `wait`."""
        self._require_started()
        while not self.over:
            self._require_no_trouble(self.refused, self.trouble)
            await asyncio.sleep(0.1)
        return self._verdict()

    def until(self, holds: Callable[[Self], T], *, timeout: float | None = None) -> T:
        """Block until something is true of this session; returns what `holds(session)` returned then.

        Asks at every record that is told, and every second: `until(lambda session: session.preview())`.
        Raises TimeoutError after `timeout` seconds, with the state, and all that `wait` raises, SessionError
        too where the run has ended first; what is true in that moment counts. SettingsError where what
        `holds` returns is neither true nor false, as a table is not. A notebook shows curves meanwhile, but
        takes no clicks.
        """
        self._require_started()
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            # Looked at first: what was told until then is seen by `holds`.
            seen, ended, refused, trouble = len(self.timeline), self.over, self.refused, self.trouble
            value = holds(self)
            if _is_true(value):
                return value
            if ended:
                ends = self._verdict()
                said = f"the run is {ends}, and what was waited for has not come. {self.error}"
                raise SessionError(said.rstrip())
            self._require_no_trouble(refused, trouble)
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError(f"not in {timeout} s; the run is {self.state}, and it goes on.")
            self.timeline.wait(seen, min(LOOK_S, left))

    def close(self) -> None:
        """Stop the run if it goes on and this kernel steers it, wait for that, and let go of it.

        Where another kernel steers, and while the run moves to another job, this is `leave`. Else `cluster`
        stays connected: its `close` ends it.
        """
        stop = None
        with contextlib.suppress(SessionError):  # it has ended this moment
            if self.leads and self.state not in ("created", "left", "moving", *ENDED):
                stop = self._send(Stop())
        self._let_go(stop)
        if job := self._run_connection.moves_to:
            warnings.warn(
                f"the run goes on in job {job}: `rehearsal-kit launch --cancel {job}` ends that, and "
                f"rk.attach({str(self.run.path)!r}) joins the run there.",
                stacklevel=2,
            )

    def leave(self) -> None:
        """Let go of a run that goes on; any kernel may steer it then, by `rk.attach`.

        A connection to the cluster that `rk.attach` has made is closed, too.
        """
        self._let_go()
        self._disconnect()

    def on_close(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call this when the session has let go of its run and knows how that ended, by whatever way.

        Returns what takes it back.
        """
        self._on_close.append(callback)

        def take_back() -> None:
            with contextlib.suppress(ValueError):  # it was called meanwhile
                self._on_close.remove(callback)

        return take_back

    def _let_go(self, stop: Wish | None = None) -> None:
        self._run_connection.close(stop)
        while self._on_close:
            try:
                self._on_close.pop()()
            except Exception:  # the others are to hear of it, and the connection is to be closed
                LOG.exception("what was to be done at the close of %s failed", self.run.path)
        if self.state == "left":
            self._disconnect()

    def _disconnect(self) -> None:
        if self._owns_connection:  # it would keep the cluster from idling as long as this kernel lives
            self.cluster.disconnect()

    # Inside ---------------------------------------------------------------------------------------------

    def _discard(self) -> None:
        """Give up a run that was never started, and leave its folder free."""
        self._let_go()
        if self._is_new:
            self.run.discard()

    def _wish(self, command: Command) -> int:
        self._require_going(type(command))
        if isinstance(command, Resume | Stop):
            self._answered = self.trouble
        if isinstance(command, Arrived | Watch) and len(self._first) < CHECKED:
            self._first.append(command)
        if isinstance(command, Steer) and self.state == "created":
            self._steered.append(command)
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
        late, run = f"{kind.__name__} came too late", str(self.run.path)
        if self.state == "left":
            raise SessionError(f"{late}: this session has left its run; rk.attach({run!r}) joins it.")
        if self.over:
            raise SessionError(f"{late}: this run is {self.state}. To go on: rk.resume({run!r}, cluster).")

    def _require_no_trouble(self, refused: str, trouble: str) -> None:
        if refused != self._told:  # who waits would wait for what was never asked
            self._told = refused
            raise SessionError(refused)
        if trouble not in ("", self._answered):
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


def _is_true(value: object) -> bool:
    """Whether what is waited for has come; SettingsError for a value that does not say it."""
    try:
        return bool(value)
    except Exception as error:  # whatever a table, an array or a tensor says of it
        raise SettingsError(
            f"until() was given a function that returned a {type(value).__name__}, which is neither true nor "
            "false; return True or False, or something that is empty until it has come, such as "
            "until(lambda session: len(session.table()) >= 2)."
        ) from error
