"""The kernel's handle on a run: start, watch, steer, wait, close. No call blocks the notebook but `wait`."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import queue
import secrets
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rehearsal_kit.arrivals import natural_key
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
from rehearsal_kit.errors import RankError, ScanError, SessionError
from rehearsal_kit.groups import Meeting
from rehearsal_kit.host import (
    TOPIC_PREFIX,
    Order,
    RankHost,
    get_preview,
    post_wishes,
    start_rank,
)
from rehearsal_kit.job import Job, keep_job
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.preview import Preview
from rehearsal_kit.run_folder import Ledger, RunFolder
from rehearsal_kit.settings import Rehearsal, Training, require_integer
from rehearsal_kit.strategies import Strategy
from rehearsal_kit.telemetry import Applied, Ended, Joined, StateChanged, from_plain
from rehearsal_kit.timeline import Timeline

JOIN_TIMEOUT_S = 120.0
LOOK_S = 1.0
CLOSE_TIMEOUT_S = 30.0
ENDED = ("finished", "stopped", "failed")


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
        self.timeline = Timeline()
        self.panel: Any = None
        """The one dashboard of this session, once it was asked for."""
        self.error = ""
        """Why the run failed; empty unless it did."""
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
        self._topic = f"{TOPIC_PREFIX}{secrets.token_hex(8)}"
        self._workers = _workers_in_order(cluster)
        keep_job(self._job, ranks=self.ranks)
        self._wishes = Ledger(self.run.wishes, durable=True)
        self._outbox: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._numbering = threading.Lock()
        self._number = 0
        self._heard = threading.Event()
        self._over = threading.Event()
        self._state = "created"
        self._thread: threading.Thread | None = None

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
        return len(self._workers)

    @property
    def state(self) -> str:
        """created, starting, waiting, running, paused, finished, stopped or failed."""
        if self._state != "live":
            return self._state
        changed = self.timeline.last(StateChanged)
        return changed.state if changed is not None else "starting"

    @property
    def over(self) -> bool:
        """Whether the run has ended, in whatever way."""
        return self._over.is_set()

    # Steering -------------------------------------------------------------------------------------------

    def submit(self, task: str | Path | Arrived) -> int:
        """A scan for the stream: a file, or an `Arrived` that tells which part of it. Returns its number.

        The ranks open it at their next step boundary; if one of them cannot, it is set aside with the
        reason and the run goes on.
        """
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
    ) -> int:
        """Change settings at the next step boundary, on all ranks at the same step or on none.

        Returns the number of the wish; `timeline` has an `Applied` record of each rank with that number
        and the step. SettingsError if a value is not allowed.
        """
        wanted = Steer(learning_rate=learning_rate, representatives=representatives, capacity=capacity)
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
        return self._wish(Resume())

    def stop(self) -> int:
        """End the run at the next step boundary."""
        return self._wish(Stop())

    # Life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start one rank on every worker; returns at once."""
        if self._state != "created":
            raise SessionError(f"start() was called, but this session is {self.state}; make a new Session.")
        self._state = "starting"
        self._thread = threading.Thread(target=self._drive, name="session", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> str:
        """Block until the run is over; returns "finished" or "stopped". For scripts.

        Raises RankError with the first error of the first rank that failed, TimeoutError after `timeout`
        seconds, and SessionError inside a running event loop, which it would block: there, `await done()`.
        An interrupt ends the waiting, not the run.
        """
        self._require_started()
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise SessionError("wait() would block this notebook; write `await session.done()`.")
        if not self._over.wait(timeout):
            raise TimeoutError(f"the run is still {self.state} after {timeout} s; it goes on.")
        return self._verdict()

    async def done(self) -> str:
        """Wait until the run is over without blocking the notebook; returns and raises like `wait`."""
        self._require_started()
        while not self._over.is_set():
            await asyncio.sleep(0.1)
        return self._verdict()

    def close(self) -> None:
        """Stop the run if it goes on, and let go of everything but the cluster and the run folder."""
        if self._thread is not None:
            if not self._over.is_set():
                self._send(Stop())
                if not self._over.wait(CLOSE_TIMEOUT_S):
                    self._end(
                        "failed", f"the ranks did not stop in {CLOSE_TIMEOUT_S:.0f} s; close the cluster."
                    )
            self._outbox.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)
            self._thread = None
        self._wishes.close()
        if self._state not in ENDED:
            self._state = "stopped"
        self._over.set()
        if self.panel is not None:  # last, so that it shows how the run ended
            self.panel.close()

    def preview(self, task: int | None = None) -> Preview | None:
        """A held-out pattern of a task and what the network makes of it now; None before there is one.

        Asks rank 0, which takes a few milliseconds; task None means the newest.
        """
        if self._state != "live":
            return None
        address = self._address(0)
        answers = self.cluster.client.run(get_preview, self._topic, task, workers=[address])
        preview: Preview | None = answers[address]
        return preview

    # Inside ---------------------------------------------------------------------------------------------

    def _wish(self, command: Command) -> int:
        if self._over.is_set():
            raise SessionError(f"{type(command).__name__} came too late: this run is {self.state}.")
        return self._send(command)

    def _send(self, command: Command) -> int:
        with self._numbering:
            self._number += 1
            wish = Wish(self._number, command)
            self._wishes.append({"time": time.time(), **to_plain(wish)})
            self._outbox.put(wish)
        return wish.number

    def _require_started(self) -> None:
        if self._state == "created":
            raise SessionError(
                "this run was not started, so there is no end to wait for; call start() first."
            )

    def _verdict(self) -> str:
        if self.state == "failed":
            raise RankError(self.error)
        return self.state

    def _drive(self) -> None:
        """The session's one thread: starts the ranks, sends wishes, notices who is gone."""
        try:
            self._listen()
            self._start_ranks()
            self._wait_for_ranks()
            while not self._over.is_set():
                self._send_wishes()
                self._look_for_the_lost()
        except OSError as error:
            self._end("failed", f"the cluster cannot be reached any more; was it stopped? {error}")
        except Exception as error:
            self._end("failed", f"{type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self.cluster.client.unsubscribe_topic(self._topic)
            self.run.rendezvous.unlink(missing_ok=True)

    def _listen(self) -> None:
        client = self.cluster.client
        client.subscribe_topic(self._topic, self._hear)
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        # A subscription takes effect at some later moment; what was told before that would be missed.
        while not self._heard.wait(0.05):
            client.log_event(self._topic, "hello")
            if time.monotonic() > deadline:
                raise SessionError("the scheduler does not pass on events; is the cluster still there?")

    def _hear(self, event: tuple[float, Any]) -> None:
        """Runs on the client's event loop: takes note and nothing else."""
        if event[1] == "hello":
            self._heard.set()
            return
        try:
            record = from_plain(event[1]["told"])
        except (KeyError, TypeError, ValueError) as error:  # Dask would log it and go on without us
            self._end("failed", f"a worker told something unknown, is its version another? {error}")
            return
        self.timeline.append(record)
        if isinstance(record, Ended):
            if record.outcome == "failed":
                self._end("failed", f"rank {record.rank}: {record.error}")
            elif len(self.timeline.records(Ended)) == self.ranks:
                self._end(record.outcome, "")

    def _end(self, outcome: str, error: str) -> None:
        if not self._over.is_set():
            self.error = error
            self._state = outcome
            self._over.set()

    def _start_ranks(self) -> None:
        client = self.cluster.client
        client.register_plugin(RankHost())
        nonce = secrets.token_hex(16)
        self._state = "live"
        for rank in range(self.ranks):
            meeting = Meeting(rendezvous=self.run.rendezvous, nonce=nonce, rank=rank, ranks=self.ranks)
            order = Order(topic=self._topic, job=self._job, meeting=meeting)
            client.run(start_rank, order, workers=[self._address(rank)])

    def _wait_for_ranks(self) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not self._over.is_set() and len(self.timeline.records(Joined)) < self.ranks:
            if time.monotonic() > deadline:
                joined = len(self.timeline.records(Joined))
                raise SessionError(f"only {joined} of {self.ranks} ranks came up in {JOIN_TIMEOUT_S:.0f} s.")
            self.timeline.wait(len(self.timeline), 0.5)

    def _send_wishes(self) -> None:
        """Wait a moment for a wish, then send all there are in one message."""
        wishes: list[str] = []
        with contextlib.suppress(queue.Empty):
            wish = self._outbox.get(timeout=LOOK_S)
            while wish is not None:
                wishes.append(wish.to_json())
                wish = self._outbox.get_nowait()
        if wishes:
            self.cluster.client.run(post_wishes, self._topic, wishes, workers=[self._address(0)])

    def _look_for_the_lost(self) -> None:
        present = _known_workers(self.cluster)
        lost = [rank for rank, address in enumerate(self._workers) if address not in present]
        if lost and not self._over.is_set():
            self._end("failed", f"the worker of rank {lost[0]} is gone: its process has ended.")

    def _address(self, rank: int) -> str:
        return self._workers[rank]


def _workers_in_order(cluster: Cluster) -> list[str]:
    """Addresses by (host, name): names survive a restart of a worker, addresses do not."""
    known = _known_workers(cluster)
    return sorted(
        known, key=lambda address: (known[address]["host"], natural_key(str(known[address]["name"])))
    )


def _known_workers(cluster: Cluster) -> dict[str, Any]:
    """All workers by address. Asked directly: what `scheduler_info` returns is a copy that a timer of the
    client may have replaced, between the question and the answer, by one without the workers.
    """
    client: Any = cluster.client
    workers: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return workers
