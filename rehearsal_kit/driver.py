"""The kernel's end of the line to the ranks: starts them, sends wishes, hears them, misses the lost."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
import time
from typing import Any

from rehearsal_kit.cluster import Cluster
from rehearsal_kit.commands import Wish
from rehearsal_kit.errors import SessionError
from rehearsal_kit.groups import Meeting
from rehearsal_kit.host import (
    TOPIC_PREFIX,
    Order,
    RankHost,
    get_preview,
    post_wishes,
    start_rank,
)
from rehearsal_kit.job import Job
from rehearsal_kit.preview import Preview
from rehearsal_kit.roster import known_workers, workers_in_order
from rehearsal_kit.telemetry import Ended, Joined, StateChanged, from_plain
from rehearsal_kit.timeline import Timeline

JOIN_TIMEOUT_S = 120.0
LOOK_S = 1.0
CLOSE_TIMEOUT_S = 30.0
ENDED = ("finished", "stopped", "failed")


class Driver:
    """One run's thread in the kernel. What the run is doing is known here and nowhere else in the kernel."""

    def __init__(self, cluster: Cluster, job: Job, timeline: Timeline) -> None:
        self.timeline = timeline
        self.error = ""
        """Why the run failed; empty unless it did."""
        self.over = threading.Event()
        self._cluster = cluster
        self._job = job
        self._topic = f"{TOPIC_PREFIX}{secrets.token_hex(8)}"
        self._workers = workers_in_order(cluster)
        self._outbox: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._heard = threading.Event()
        self._state = "created"
        self._thread: threading.Thread | None = None

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
    def trouble(self) -> str:
        """Why the ranks have paused on their own; empty if they have not."""
        changed = self.timeline.last(StateChanged)
        return changed.reason if changed is not None and self.state == "paused" else ""

    def start(self) -> None:
        """Start one rank on every worker, in a thread of its own."""
        if self._state != "created":
            raise SessionError(f"start() was called, but this session is {self.state}; make a new Session.")
        self._state = "starting"
        self._thread = threading.Thread(target=self._drive, name="session", daemon=True)
        self._thread.start()

    def send(self, wish: Wish) -> None:
        """Pass a wish on to rank 0, as soon as there is one."""
        self._outbox.put(wish)

    def close(self, stop: Wish | None) -> None:
        """Let go of the ranks; `stop` has been sent if they were still training."""
        if self._thread is not None:
            if stop is not None and not self.over.wait(CLOSE_TIMEOUT_S):
                self._end("failed", f"the ranks did not stop in {CLOSE_TIMEOUT_S:.0f} s; close the cluster.")
            self._outbox.put(None)
            self._thread.join(CLOSE_TIMEOUT_S)
            self._thread = None
        if self._state not in ENDED:
            self._state = "stopped"
        self.over.set()

    def preview(self, task: int | None) -> Preview | None:
        """What rank 0 has of a task; None before there is one and once the ranks have ended."""
        if self._state != "live":
            return None
        address = self._workers[0]
        answers = self._cluster.client.run(get_preview, self._topic, task, workers=[address])
        preview: Preview | None = answers[address]
        return preview

    def _drive(self) -> None:
        """The session's one thread: starts the ranks, sends wishes, notices who is gone."""
        try:
            self._listen()
            self._start_ranks()
            self._wait_for_ranks()
            while not self.over.is_set():
                self._send_wishes()
                self._look_for_the_lost()
        except OSError as error:
            self._end("failed", f"the cluster cannot be reached any more; was it stopped? {error}")
        except Exception as error:
            self._end("failed", f"{type(error).__name__}: {error}")
        finally:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._cluster.client.unsubscribe_topic(self._topic)
            self._job.run.rendezvous.unlink(missing_ok=True)

    def _listen(self) -> None:
        client = self._cluster.client
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
        if not self.over.is_set():
            self.error = error
            self._state = outcome
            self.over.set()

    def _start_ranks(self) -> None:
        client = self._cluster.client
        client.register_plugin(RankHost())
        nonce = secrets.token_hex(16)
        self._state = "live"
        for rank in range(self.ranks):
            meeting = Meeting(rendezvous=self._job.run.rendezvous, nonce=nonce, rank=rank, ranks=self.ranks)
            order = Order(topic=self._topic, job=self._job, meeting=meeting)
            client.run(start_rank, order, workers=[self._workers[rank]])

    def _wait_for_ranks(self) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not self.over.is_set() and len(self.timeline.records(Joined)) < self.ranks:
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
            self._cluster.client.run(post_wishes, self._topic, wishes, workers=[self._workers[0]])

    def _look_for_the_lost(self) -> None:
        present = known_workers(self._cluster)
        lost = [rank for rank, address in enumerate(self._workers) if address not in present]
        if lost and not self.over.is_set():
            self._end("failed", f"the worker of rank {lost[0]} is gone: its process has ended.")
