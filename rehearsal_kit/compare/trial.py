"""One strategy on one stream with one seed: a run in a folder, and its outcome beside it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rehearsal_kit.base.files import written_whole
from rehearsal_kit.base.peak_memory import peak_memory
from rehearsal_kit.cluster.cluster import Cluster
from rehearsal_kit.compare.arms import Arm
from rehearsal_kit.compare.streams import CompareStream
from rehearsal_kit.record.commands import Arrived
from rehearsal_kit.reports.comparison import Outcome
from rehearsal_kit.session.progress_bar import train_to_the_end
from rehearsal_kit.session.session import Session


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A stream as it lies on disk for one seed."""

    stream: CompareStream
    tasks: Sequence[Arrived]
    samples: int
    """Samples for training, over all tasks."""
    seed: int
    full: bool
    """Whether the full network is trained."""


def run_trial(cluster: Cluster, arm: Arm, laid: Laid, *, folder: Path, title: str) -> Outcome:
    """Train, or read what an earlier call has written; a run that was cut short is done anew.

    RankError where the run failed or paused on its own; it is then left as it is.
    """
    outcome_at = folder / f"{arm.slug}.json"
    if outcome_at.exists():
        return Outcome.from_plain(json.loads(outcome_at.read_text()))
    run = folder / arm.slug
    if run.exists():
        _put_aside(run)
    stream = laid.stream
    capacity = max(1, round(arm.percent / 100 * laid.samples))
    rehearsal = arm.rehearsal(stream)
    drawn = max(rehearsal.representatives, rehearsal.distillation)
    with (
        peak_memory(cluster.processes) as peak,
        Session(
            cluster,
            run=run,
            strategy=arm.made(stream),
            network=(stream.full if laid.full else stream.small)(laid.seed),
            seed=laid.seed,
            preparation=stream.preparation,
            training=arm.training(stream),
            rehearsal=replace(rehearsal, capacity=max(capacity, drawn)),
        ) as session,
    ):
        for task in laid.tasks:
            session.submit(task)
        session.finish_stream()
        session.start()
        train_to_the_end(session, title, expected=len(laid.tasks), finish=False)
    outcome = Outcome.of(arm.label, session.timeline, memory_bytes=peak.bytes)
    with written_whole(outcome_at) as partial:
        partial.write_text(json.dumps(asdict(outcome), indent=1))
    return outcome


def _put_aside(run: Path) -> None:
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            there = run.with_name(f"{run.name}.cut-short-{number}")
            there.mkdir(mode=0o700)  # nobody else gets this number
            break
    run.rename(there)
