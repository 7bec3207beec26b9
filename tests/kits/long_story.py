"""A long run told by a real reporter to a real history and panel, without training."""

from __future__ import annotations

import gc

import psutil

from rehearsal_kit.bench.run.history import Reading
from rehearsal_kit.bench.run.long_runs import EACH, LongRun
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.record.records import Evaluated, Steps, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.session.tables import checkpoints_table, results_table
from rehearsal_kit.widgets.panel import Panel


def live_through(run: RunFolder, story: LongRun, *, looks: int) -> tuple[float, float]:
    """Tell it, look at the panel now and then; MiB of this process in the middle and at the end."""
    history, lines = TimelineTail(run), []
    panel = Panel(Reading(run, history.timeline), pump=False)

    def publish(record, line):
        lines[:] = [line]
        history.hear(record, line)

    reporter = Reporter(run, 0, publish)
    told, middle, count = 0, 0.0, 0
    for record in story.records():
        reporter.tell(record)
        told += 1
        if isinstance(record, Steps):
            count += 1
            if count % (story.steps // looks) == 0:
                panel.push()
            if count == story.steps // 2:
                middle = resident()
    reporter.close()
    panel.push()
    end = resident()
    assert lines == [told - 1]
    assert len(history.timeline) == told
    assert dict(panel.line.facts)["step"] == str(EACH * story.steps)
    assert sum(record.count for record in history.timeline.records(Steps)) == EACH * story.steps
    panel.close()
    later = TimelineTail(run)
    later.catch_up()
    for now in (history.timeline, later.timeline):
        assert len(now.records(TaskEnded)) == story.tasks
    assert results_table(later.timeline).equals(results_table(history.timeline))
    assert checkpoints_table(later.timeline).equals(checkpoints_table(history.timeline))
    assert len(later.timeline.records(Evaluated)) == len(history.timeline.records(Evaluated))
    return middle, end


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20
