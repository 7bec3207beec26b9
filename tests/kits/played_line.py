"""A client of Dask and a coordinator behind it that are only played: sessions without a cluster."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

from runkit import Net, job_in

from rehearsal_kit.cluster.acceptance import refusal, too_late
from rehearsal_kit.rank.run_spec import keep_spec
from rehearsal_kit.record.records import Record, to_plain
from rehearsal_kit.session.session import ContinuedSession

TOPIC = "rehearsal-kit/1"


class Line:
    """Stands for a client of Dask and for the coordinator behind it.

    refused: what the coordinator says to a run that is to begin.
    """

    def __init__(self, *, refused=""):
        self.id, self.status, self.refused = "client-a", "running", refused
        self.scheduler = SimpleNamespace(log_event=self.log_event)
        self.found = {"topic": TOPIC, "outcome": "", "holder": ""}
        self.posted, self.hear, self.deadlines = [], None, {}
        self.is_open = True

    def sync(self, call, *arguments, callback_timeout, **named):
        assert callback_timeout, "a call without a deadline"
        _, asked, *rest = arguments  # `within` asks by way of one that looks whether the cluster is gone
        self.deadlines[getattr(rest[0] if rest else asked, "__name__", "")] = callback_timeout
        return asyncio.run(call(*arguments, **named))

    def subscribe_topic(self, topic, hear):
        self.hear = hear

    def unsubscribe_topic(self, topic):
        self.hear = None

    def tell(self, message):
        if self.hear is not None:  # somebody listens
            self.hear((0.0, message))

    def record(self, told: Record):
        """Have ranks or coordinator tell this, as if it stood in no file."""
        self.tell({"told": to_plain(told), "line": None})

    async def log_event(self, *, topic, msg):
        self.tell(msg)

    async def _register_worker_plugin(self, **_):
        pass

    _register_scheduler_plugin = _register_worker_plugin

    async def _run_on_scheduler(self, function, *arguments, **named):
        return getattr(self, function.__name__)(*arguments, **named)

    def begin_run(self, order, wishes, *, holder):
        return self.refused

    def look_for(self, folder, *, holder=""):
        return self.found

    def ask_lease(self, topic, holder, *, take):
        self.found["holder"] = holder
        return True

    def post_wishes(self, topic, wishes, *, holder):
        if self.found["outcome"]:
            return refusal([json.loads(text) for text in wishes], too_late(self.found["outcome"]))
        self.posted += wishes
        return ""

    def release_lease(self, topic, holder):
        pass


def session_on(line: Line, folder: Path) -> ContinuedSession:
    """A session that is attached to a run of one rank, and steers it."""
    spec = job_in(folder)
    keep_spec(spec, ranks=1)

    def disconnect() -> None:
        line.is_open = False

    cluster = SimpleNamespace(client=line, has_ended=False, disconnect=disconnect)
    return ContinuedSession.attached(cluster, spec, Net(), take=True)
