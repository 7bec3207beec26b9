"""Time from click to effect on all ranks: commands sent to a session that trains, until all acknowledge."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.bench.table import Table
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.networks.ptychonn import PtychoNN
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.record.records import Steps
from rehearsal_kit.session.session import Session

LIMIT_S = 0.25
LIMIT_STEPS = 2
ANSWER_TIMEOUT_S = 60.0
TRAINING = Training(batch=16, epochs=1000, scaling="none")
REHEARSAL = Rehearsal(representatives=24, candidates=8, capacity=1000)


@dataclass(frozen=True)
class CommandLatency:
    """Seconds from the call to the acknowledgement of the last rank, as the session sees it."""

    ranks: int
    seconds: tuple[float, ...]
    step_s: float
    """Median time from one step to the next while the commands came."""

    def limit_s(self) -> float:
        """A quarter of a second, or two steps if these take longer."""
        return max(LIMIT_S, LIMIT_STEPS * self.step_s)

    def data(self) -> dict[str, Any]:
        """Plain values."""
        return {"ranks": self.ranks, "step_s": self.step_s, "seconds": list(self.seconds)}


def measure_latency(ranks: int, commands: int, say: Callable[[str], None]) -> CommandLatency:
    """Change the learning rate of a run again and again, at moments that do not depend on its steps."""
    with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:
        beamline = Beamline(folder=Path(folder), scans=1, seed=0)
        scan = beamline.write(0)
        say(f"starting {ranks} workers")
        with (
            start_cluster("cpu", workers=ranks) as cluster,
            Session(
                cluster,
                run=Path(folder) / "run",
                strategy=ER(),
                network=PtychoNN(size="small"),
                preparation=Preparation(size=32),
                training=TRAINING,
                rehearsal=REHEARSAL,
                recovery=Recovery(checkpoint_s=1e9),
            ) as session,
        ):
            session.submit(Arrived(name=scan.stem, path=str(scan)))
            session.start()
            _until(session, lambda: len(session.timeline.records(Steps)) > 2)
            say(f"sending {commands} commands")
            random = np.random.default_rng(0)
            first = len(session.timeline.records(Steps))
            seconds = tuple(
                _one(session, 1e-3 * (1 + n % 2), float(random.random())) for n in range(commands)
            )
            steps = session.timeline.records(Steps)[first:]
            return CommandLatency(ranks, seconds, _step_s(steps))


def latency_table(latency: CommandLatency) -> Table:
    """Median and 95th percentile beside the limit."""
    median, late = np.percentile(latency.seconds, [50, 95]).tolist()
    limit = latency.limit_s()
    verdict = "within" if late <= limit else "above"
    line = (
        f"{len(latency.seconds)} commands, {latency.ranks} ranks",
        f"{median * 1e3:.0f}",
        f"{late * 1e3:.0f}",
        f"{latency.step_s * 1e3:.0f}",
        f"{limit * 1e3:.0f}",
        verdict,
    )
    columns = ("click to effect", "median ms", "p95 ms", "step ms", "limit ms", "p95")
    notes = (
        "From session.steer() to the acknowledgement of the last rank. Each command is on disk, voted on and",
        "applied by all ranks at the same step before it is acknowledged; the limit is 250 ms, or 2 steps.",
    )
    return Table("Commands", columns, (line,), notes)


def _one(session: Session, rate: float, pause: float) -> float:
    time.sleep(0.1 * pause)  # so that commands do not come at the same moment of a step
    began = time.perf_counter()
    number = session.steer(learning_rate=rate)
    _until(session, lambda: len(session.acknowledged(number)) == session.ranks)
    return time.perf_counter() - began


def _until(session: Session, holds: Callable[[], bool]) -> None:
    try:
        session.until(lambda _: holds(), timeout=ANSWER_TIMEOUT_S)
    except TimeoutError as error:
        raise RehearsalKitError(f"the run did not answer: {session}") from error


def _step_s(steps: list[Steps]) -> float:
    """Seconds of a step, from one record to the next: what lies between two steps counts too."""
    if len(steps) < 2:
        return steps[0].seconds / len(steps[0].losses) if steps else 0.0
    passed = steps[-1].time - steps[0].time
    return passed / sum(len(record.losses) for record in steps[1:])
