"""The kernel's end of the line to a run: hands it to the coordinator, sends wishes, hears what is told.

    kernel's thread     start, send ------> outbox         timeline <-- history (the files of the run)
                                              |               ^
    session's thread    begins the run, posts wishes          | events, and a look now and then
                                              v               |
    scheduler           coordinator: accepts or refuses, writes down, passes on to rank 0

No call of the kernel waits for ranks. A scheduler that does not answer is waited for with a deadline; then
the run is said to be out of reach, and whatever was not accepted is said to be refused.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rehearsal_kit.base.errors import ClusterError, SessionError, said
from rehearsal_kit.base.patience import Patience
from rehearsal_kit.cluster.acceptance import named, refusal, too_late
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.cluster.cluster_calls import ask_scheduler, within
from rehearsal_kit.cluster.coordinator import Coordinator
from rehearsal_kit.cluster.preview_call import ask_preview
from rehearsal_kit.cluster.protocol import TOPIC_PREFIX, RunOrder
from rehearsal_kit.cluster.rank_host import RankHost
from rehearsal_kit.cluster.scheduler_calls import ask_lease, begin_run, look_for, post_wishes, release_lease
from rehearsal_kit.record.commands import Wish, to_plain
from rehearsal_kit.record.lease import require_free
from rehearsal_kit.record.preview_files import Preview, Wanted
from rehearsal_kit.record.rank_records import GenerationBegan, GenerationEnded, LeaseTaken, RunOver, Stalled
from rehearsal_kit.record.records import Applied, StateChanged, from_plain
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.run_states import ENDED, INTERRUPTED
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.session.next_cluster import next_cluster
from rehearsal_kit.session.outbox import Outbox
from rehearsal_kit.session.unclaimed_tasks import remove_unclaimed

LOG = logging.getLogger(__name__)
LOOK_S = 1.0
ANSWER_S = 60.0
"""A scheduler that has not answered for so long is frozen, or cannot be reached."""
BROKEN_S = 8.0
"""A kernel that cannot reach the scheduler for so long says so; the run may go on without it."""
SLOW_BYTES_S = 2**20
"""A kernel far away sends a network no slower than that; its way to the scheduler is not broken meanwhile."""
CLOSE_TIMEOUT_S = SUBSCRIBE_TIMEOUT_S = 60.0
OF_LATE = 100
"""Acknowledgements among which that of a stop is looked for."""
LAST_WORDS_S = 12.0
"""What ranks and coordinator have to write how a run ended whose cluster ends."""
OF_THE_COORDINATOR = (GenerationBegan, GenerationEnded, Stalled, LeaseTaken, RunOver)


class RunConnection:
    """One run's thread in the kernel. What the run is doing is known here and nowhere else in the kernel."""

    def __init__(self, cluster: Cluster, run: RunFolder) -> None:
        self.history = TimelineTail(run)
        self.timeline = self.history.timeline
        self.error = ""
        """Why the run failed, or what to do after its cluster ended; else empty."""
        self.over = threading.Event()
        self.leads = True
        """Whether this kernel may steer, as the coordinator has said last."""
        self.refused = ""
        """Which wishes were not accepted last, and why; empty if all were."""
        self.holders = [f"{cluster.client.id}/{secrets.token_hex(4)}"]
        """Names of this kernel among those that steer the run, one for each connection, the newest last."""
        self._cluster = cluster
        self._run = run
        self._topic = ""
        self._outbox = Outbox()
        self._unanswered: list[Wish] = []
        """Sent, and nobody has said yet whether they were accepted."""
        self._unaccepted: frozenset[int] = frozenset()
        """Numbers of the wishes that `refused` is about."""
        self._heard = threading.Event()
        self._closing = threading.Event()
        self._first = 0
        """Record of the run from which on they tell of this start of it: others tell of earlier ones."""
        self.moves_to = ""
        """The job to which the run moves, whose cluster is not there yet; empty if it does not move."""
        self._state = "created"
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> str:
        """created, starting, waiting, running, paused, recovering, moving, or one of those in ENDED."""
        if self._state != "live":
            return self._state
        newest = self.newest(StateChanged, GenerationBegan, GenerationEnded)
        if isinstance(newest, StateChanged):
            return newest.state
        began = self.timeline.records(GenerationBegan, since=self._first)
        return "starting" if len(began) <= 1 and not isinstance(newest, GenerationEnded) else "recovering"

    def newest(self, *kinds: type[Any]) -> Any:
        """The newest record of these kinds since the run was started; None before there is one."""
        return self.timeline.newest(kinds, since=self._first)

    @property
    def trouble(self) -> str:
        """Why the ranks have paused on their own; empty if they have not."""
        changed = self.newest(StateChanged)
        return changed.reason if changed is not None and self.state == "paused" else ""

    def start(self, order: RunOrder) -> None:
        """Have the coordinator start one rank on every worker; returns at once."""
        if self._state != "created":
            raise SessionError(f"start() was called, but this session is {self.state}; make a new Session.")
        self._state = "starting"
        self._first = len(self.timeline)
        self._topic = order.topic
        self._launch(order)

    def attach(self, *, take: bool) -> None:
        """Join a run that the cluster knows already; SessionError if it knows none in this folder.

        take: steer from here, even if another kernel does; else only if nobody does. ClusterGoneError where
        the scheduler does not answer.
        """
        client = self._cluster.client
        found = ask_scheduler(client, look_for, str(self._run.path), timeout_s=ANSWER_S)
        if found is None:
            require_free(self._run)
            raise SessionError(
                f"no run of {self._run.path} is under way on this cluster; "
                f"rk.resume({str(self._run.path)!r}, cluster) goes on from its last checkpoint."
            )
        self._topic = found["topic"]
        self.history.catch_up()
        self.leads = ask_scheduler(
            client, ask_lease, self._topic, self.holders[-1], take=take, timeout_s=ANSWER_S
        )
        self._state = "live"
        if found["outcome"]:  # known at once: nobody is told that another kernel steers what is over
            self._end_as(found["outcome"])
        if not self.over.is_set():  # it goes on here, or moves to the next job
            self._launch(None)

    def send(self, wish: Wish) -> None:
        """Pass a wish on to rank 0, as soon as there is one; after the end of the run it is refused."""
        if not self._outbox.put(wish):
            self._refuse_late([wish])

    def close(self, stop: Wish | None) -> None:
        """Let go of the run; `stop` has been sent if this kernel was to end it."""
        if self._thread is not None:
            if stop is not None and not self._stopped(stop):
                self._end("failed", f"the ranks did not stop in {CLOSE_TIMEOUT_S:.0f} s; close the cluster.")
            self._closing.set()
            self._outbox.close()
            self._thread.join(CLOSE_TIMEOUT_S)
            self._thread = None
        if self._state not in ENDED:
            stopped = self._state == "created" or (stop is not None and stop.number not in self._unaccepted)
            self._state = "stopped" if stopped else "left"
        self.over.set()

    def _stopped(self, stop: Wish) -> bool:
        """Whether the run has ended in time, or another kernel steers it, so that it does not end."""
        patience = Patience(CLOSE_TIMEOUT_S)
        while not self.over.wait(0.05) and stop.number not in self._unaccepted:
            if not patience.lasts(time.monotonic() if self._is_obeyed(stop) else None):
                return False
        return True

    def _is_obeyed(self, stop: Wish) -> bool:
        """Whether the ranks end by this wish and get on with that: a last checkpoint may be of any size."""
        newest = self.newest(GenerationBegan, Stalled)
        stalled = isinstance(newest, Stalled) and newest.seconds > 0
        applied = [record for record in self.timeline.latest(Applied, OF_LATE) if not record.refused]
        return not stalled and any((r.number, r.holder) == (stop.number, self.holders[-1]) for r in applied)

    def preview(self, wanted: Wanted) -> Preview | None:
        """What rank 0 has of a task; None before there is one, and where there is no rank 0 that answers."""
        began, newest = self.newest(GenerationBegan), self.newest(GenerationBegan, Stalled)
        if self._state != "live" or began is None or (isinstance(newest, Stalled) and newest.seconds > 0):
            return None
        client, worker = self._cluster.client, began.workers[0]
        return ask_preview(client, worker, topic=self._topic, wanted=wanted)

    def _launch(self, order: RunOrder | None) -> None:
        self._thread = threading.Thread(target=self._drive, args=(order,), name="session", daemon=True)
        self._thread.start()

    def _drive(self, order: RunOrder | None) -> None:
        """The session's one thread: begins the run, and goes with it to the next job where it moves."""
        if not self.moves_to:
            self._attend(order)
        while self.moves_to and not self._closing.is_set():
            if self._has_followed():
                self._attend(None)
        client: Any = self._cluster.client
        self._end_sending()
        with contextlib.suppress(Exception):  # the cluster may be gone, or its client closed
            client.unsubscribe_topic(self._topic)
            self._within(BROKEN_S, client._run_on_scheduler, release_lease, self._topic, self.holders[-1])

    def _attend(self, order: RunOrder | None) -> None:
        """Begin the run, if there is an order, send wishes, notice if the cluster is gone."""
        try:
            self._listen()
            if order is not None:
                self._begin(order)
            while not self.over.is_set() and not self.moves_to and self._send_wishes():
                self._look()
        except OSError as error:
            self._lose(
                f"the cluster cannot be reached any more ({error}); the run may go on without this kernel: "
                f"rk.attach({str(self._run.path)!r}) joins it, or says what to do where it is gone."
            )
        except Exception as error:
            self._lose(said(error))

    def _has_followed(self) -> bool:
        """Wait for the job to which the run moves; whether this kernel is connected to the run there."""
        self._state, self._first = "moving", len(self.timeline)
        try:
            found = next_cluster(self._cluster, self._run, leads=self.leads, closing=self._closing)
            self.history.catch_up()
        except (ClusterError, OSError) as error:
            self.moves_to = ""
            self._end(INTERRUPTED, str(error))
            return False
        if found is None:
            return False
        self._topic, holder, self.leads = found
        self.holders.append(holder)
        self._heard.clear()
        self.moves_to, self._state = "", "live"
        return True

    def _begin(self, order: RunOrder) -> None:
        client: Any = self._cluster.client
        # What client.register_plugin does, but with a deadline: a frozen worker would not answer.
        host, coordinator = RankHost(), Coordinator()
        for register, plugin in (
            (client._register_worker_plugin, host),
            (client._register_scheduler_plugin, coordinator),
        ):
            self._within(ANSWER_S, register, plugin=plugin, name=plugin.name, idempotent=True)
        # Together with the run, so that what was asked before is accepted with it, or not at all.
        first = self._outbox.taken_out(wait_s=0.0)
        wishes = [wish.to_json() for wish in first]
        patience_s = BROKEN_S + len(order.spec) / SLOW_BYTES_S
        refused = self._ask(begin_run, asdict(order), wishes, holder=self.holders[-1], patience_s=patience_s)
        if refused:  # nothing was begun, so there are no last words of it to look for
            remove_unclaimed(self._run, first)
            again = f"rk.resume({str(self._run.path)!r}, cluster) starts it; then submit and watch again"
            self._end("failed", f"{refused} Once that is mended, {again}.")
        else:
            self._state = "live"

    def _listen(self) -> None:
        client: Any = self._cluster.client
        client.subscribe_topic(self._topic, self._hear)
        deadline = time.monotonic() + SUBSCRIBE_TIMEOUT_S
        # A subscription takes effect at some later moment; what was told before that would be missed.
        while not self._heard.wait(0.05):
            self._within(BROKEN_S, client.scheduler.log_event, topic=self._topic, msg="hello")
            if time.monotonic() > deadline:
                raise SessionError("the scheduler does not pass on events; is the cluster still there?")

    def _hear(self, event: tuple[float, Any]) -> None:
        """Runs on the client's event loop: takes note and nothing else."""
        if event[1] == "hello":
            self._heard.set()
            return
        try:
            told = from_plain(event[1]["told"])
            of_generations = isinstance(told, OF_THE_COORDINATOR)
            self.history.hear(told, event[1]["line"], of_generations=of_generations)
        except (KeyError, TypeError, ValueError) as error:  # Dask would log it and go on without us
            self._end("failed", f"a worker told something unknown, is its version another? {error}")
            return
        if isinstance(told, LeaseTaken):
            self.leads = told.holder == self.holders[-1]
        if isinstance(told, RunOver):
            self._take_end(told)

    def _end_as(self, outcome: str) -> None:
        """The coordinator has said that the run is over; its files say why."""
        over = self.newest(RunOver)
        self._take_end(RunOver(outcome=outcome, error="", time=0.0) if over is None else over)

    def _take_end(self, over: RunOver) -> None:
        """The run has ended here; where another job goes on with it, its session goes on, too."""
        if over.moves_to and not self._closing.is_set():
            self.moves_to = over.moves_to
        else:
            self._end(over.outcome, over.error)

    def _end(self, outcome: str, error: str) -> None:
        if not self.over.is_set():
            self.error = error
            self._state = outcome
            self.over.set()

    def _lose(self, words: str) -> None:
        """The cluster cannot be asked any more: perhaps its last words stand in the folder of the run."""
        deadline, gone = time.monotonic() + LAST_WORDS_S, False
        while not (self.over.is_set() or self.moves_to or gone) and time.monotonic() < deadline:
            gone = self._cluster.has_ended  # looked at first: what it wrote until then is read below
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self.history.catch_up()
            newest = self.newest(GenerationBegan, RunOver)
            if newest is None:  # it never began
                break
            if isinstance(newest, RunOver):
                self._take_end(newest)
            self.over.wait(0.1)
        if self.moves_to:
            return
        if gone:
            again = f"rk.resume({str(self._run.path)!r}, rk.start_cluster()) goes on with the run"
            words = f"the cluster has ended; {again}."
        self._end("failed", words)

    def _send_wishes(self) -> bool:
        """Wait a moment for a wish, then send all there are in one message; False once there will be none."""
        wishes = self._outbox.taken_out(wait_s=LOOK_S)
        if wishes:
            self._unanswered = wishes
            texts = [wish.to_json() for wish in wishes]
            refused = self._ask(post_wishes, self._topic, texts, holder=self.holders[-1])
            self._unanswered = []
            if refused:
                self._refuse(wishes, refused)
        return not self._outbox.last_taken

    def _end_sending(self) -> None:
        """Say of the wishes that are left that they came too late: nobody takes them out any more."""
        if left := self._outbox.shut():
            self._refuse_late(left)
        if self._unanswered:
            names = named([to_plain(wish) for wish in self._unanswered])
            again = f"rk.attach({str(self._run.path)!r}) shows what took effect"
            self.refused = f"not answered: {names}. The cluster may have accepted it, or not; {again}."

    def _refuse_late(self, wishes: Sequence[Wish]) -> None:
        self._refuse(wishes, refusal([to_plain(wish) for wish in wishes], too_late(self.state)))

    def _refuse(self, wishes: Sequence[Wish], words: str) -> None:
        remove_unclaimed(self._run, wishes)
        self._unaccepted = frozenset(wish.number for wish in wishes)
        self.refused = words

    def _ask(
        self, function: Callable[..., Any], *arguments: Any, patience_s: float = BROKEN_S, **named: Any
    ) -> Any:
        """Have the scheduler run this; TimeoutError where the connection to it is broken for long.

        patience_s: how long one answer may take; then it is asked once more.
        It may have run twice then, if it is slow: wishes are known by their numbers, a run by its topic.
        """
        client = self._cluster.client
        deadline = time.monotonic() + ANSWER_S
        while True:
            try:
                return self._within(patience_s, client._run_on_scheduler, function, *arguments, **named)
            except TimeoutError:
                late = time.monotonic() > deadline or self._closing.is_set()
                if late or client.status != "running" or self._cluster.has_ended:
                    raise

    def _within(self, timeout_s: float, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        client, gone = self._cluster.client, lambda: self._cluster.has_ended
        return within(client, timeout_s, call, *arguments, gone=gone, **named)

    def _look(self) -> None:
        """Whether the coordinator still knows the run, and has told us all."""
        found = self._ask(look_for, str(self._run.path), holder=self.holders[-1])
        try:
            self.history.catch_up()
        except OSError as error:  # a network file system may be away for a while: what is told is heard
            LOG.warning("the files of %s cannot be read now: %s", self._run.path, error)
        if found is None or found["topic"] != self._topic:
            self._end(
                "failed",
                f"the cluster does not know this run any more; rk.attach({str(self._run.path)!r}) joins it "
                "where it goes on, or says what to do.",
            )
            return
        self.leads = found["holder"] == self.holders[-1]
        if found["outcome"]:
            self._end_as(found["outcome"])


def new_topic() -> str:
    """A name for a run on a cluster."""
    return f"{TOPIC_PREFIX}{secrets.token_hex(8)}"
