"""What rank 0 tells is for people and plots: nothing of it may end a run, or cost more in a longer one."""

from __future__ import annotations

import contextlib
import resource
import signal

import pytest
from runkit import Net, carry_out, class_tasks, job_in, written

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.bench.run.long_runs import LongRun
from rehearsal_kit.rank.reporter import Reporter
from rehearsal_kit.record.commands import FinishStream
from rehearsal_kit.record.ledger import Ledger, read_ledger
from rehearsal_kit.record.records import (
    Applied,
    CheckpointTaken,
    Noted,
    NotKept,
    Restored,
    Steps,
    TaskEnded,
)
from rehearsal_kit.record.seen import SeenRecords
from rehearsal_kit.record.tail import TimelineTail
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.record.timeline_cache import condensed_path
from rehearsal_kit.record.timeline_file import EVERY
from rehearsal_kit.widgets.status import banner


def note(number: int) -> Noted:
    return Noted(step=number, text=f"note {number}", time=0.0)


@contextlib.contextmanager
def full_disk(bytes_left: int, path):
    """No file of this process can grow beyond the size of this one and a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_what_cannot_be_appended_leaves_nothing_behind(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, durable=True)
    ledger.append({"number": 0})
    with full_disk(10, path), pytest.raises(OSError, match="too large"):
        ledger.append({"number": 1, "text": "x" * 100})
    assert read_ledger(path) == [{"number": 0}]
    assert path.read_bytes().endswith(b"}\n")  # not a part of the second
    assert ledger.append({"number": 2}) == 1
    ledger.close()
    assert [entry["number"] for entry in read_ledger(path)] == [0, 2]


def test_a_full_disk_is_told_once_and_the_rank_goes_on(run):
    history, lines = TimelineTail(run), []

    def publish(record, line):
        lines.append(line)
        history.hear(record, line)

    reporter = Reporter(run, 0, publish)
    reporter.tell(note(0))
    with full_disk(5, run.timeline):
        for number in (1, 2):
            reporter.tell(note(number))
        assert "timeline cannot be kept, the run goes on: [Errno 27]" in banner(
            history.timeline, state="running"
        )
    reporter.tell(note(3))
    reporter.close()
    # Those who listen have heard all; who comes later is told that something is missing.
    assert [record.step for record in history.timeline.records(Noted)] == [0, 1, 2, 3]
    assert [bool(record.reason) for record in history.timeline.records(NotKept)] == [True, False]
    assert [line for line in lines if line is not None] == [0, 1, 2]
    assert banner(history.timeline, state="running") == ""
    later = Timeline.load(run.timeline)
    assert [record.step for record in later.records(Noted)] == [0, 3]
    assert len(later.records(NotKept)) == 1


def test_a_run_does_not_end_for_what_only_plots_need(tmp_path):
    spec = job_in(tmp_path / "run")
    spec.run.timeline.mkdir()  # whoever opens it gets an OSError
    plan = [(0, task) for task in class_tasks(tmp_path / "tasks", tasks=2)]
    outcome, timeline = carry_out(ProcessGroups(0, 1), spec, [*plan, (0, FinishStream())])
    assert outcome == "finished"
    (told,) = timeline.records(NotKept)
    assert told.what == "timeline"
    assert told.reason
    assert len(timeline.records(TaskEnded)) == 2


def test_damaged_lines_do_not_end_a_generation_that_begins_with_them(tmp_path):
    spec = job_in(tmp_path / "run", recovery=Recovery(checkpoint_s=0.0, keep_last=1000))
    plan = [(0, task) for task in class_tasks(tmp_path / "tasks", tasks=2)]
    carry_out(ProcessGroups(0, 1), spec, [*plan, (0, FinishStream())])
    content = bytearray(spec.run.timeline.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 900] = b"\0" * 900
    spec.run.timeline.write_bytes(content)
    outcome, _ = carry_out(ProcessGroups(0, 1), spec, [], generation=2, network=Net())
    assert outcome == "finished"


# A longer run -------------------------------------------------------------------------------------------


def taken(number: int) -> CheckpointTaken:
    return CheckpointTaken(step=10 * number, checkpoint=number, weights="w", time=0.0)


def steps(first: int, count: int) -> Steps:
    return Steps(
        first=first, task=0, losses=(1.0,) * count, seconds=1.0, waited=0.0, hidden=0.0, representatives=0,
        remote=0, stored=0, time=0.0,
    )  # fmt: skip


def test_only_what_can_come_again_is_remembered_after_a_restart(run):
    written(run, [note(1), taken(1), note(11), steps(10, 5), taken(2), note(21), steps(20, 7), note(22)])
    told = SeenRecords.since(run.timeline, 2)
    assert [told.has(note(number)) for number in (1, 11, 21, 22, 23)] == [False, True, True, True, False]
    assert [told.has_step(0, step) for step in (20, 26, 27)] == [True, True, False]
    assert SeenRecords.since(run.timeline, 1).has(note(11))
    assert SeenRecords.since(run.timeline, 0).has(note(1))
    assert SeenRecords.since(run.timeline, 9).has(note(21))  # it is not said where that was taken


def test_the_order_in_which_settings_were_written_makes_no_other_record(run):
    said = {"rank": 0, "step": 3, "number": 1, "kind": "Steer", "digest": "d"}
    written(run, [Applied(settings={"batch": 4, "policy": "fifo"}, **said)])
    told = SeenRecords.since(run.timeline, 0)
    assert told.has(Applied(settings={"policy": "fifo", "batch": 4}, **said))
    assert not told.has(Applied(settings={"policy": "fifo", "batch": 5}, **said))


def test_what_was_told_before_a_checkpoint_was_taken_again_is_remembered(run):
    back = Restored(step=10, checkpoint=1, generation=2, time=0.0)
    written(run, [taken(1), taken(2), note(21), steps(20, 9), back, taken(2), note(24)])
    told = SeenRecords.since(run.timeline, 2)
    assert told.has(note(21))
    assert told.has(note(24))
    assert told.has_step(0, 28)


def test_the_cache_for_kernels_is_made_on_the_way(run):
    reporter = Reporter(run, 0, lambda record, line: None)
    for number in range(EVERY + 5):
        reporter.tell(note(number))
    reporter.close()
    assert condensed_path(run.timeline).exists()
    history = TimelineTail(run)
    history.catch_up()
    assert len(history.timeline) == EVERY + 5


def test_a_long_run_goes_through_rank_0_kernel_and_panel(run):
    """What the endurance test below does, with a hundredth of the records."""
    from long_story import live_through

    live_through(run, LongRun(5_000, 60), looks=10)


@pytest.mark.endurance
@pytest.mark.timeout(3600)
def test_a_year_of_records_goes_through_rank_0_kernel_and_panel(run):
    """10^6 records of steps and 2,000 tasks: from the middle on memory grows by what tasks bring alone."""
    from long_story import live_through

    middle, end = live_through(run, LongRun(1_000_000, 2_000), looks=200)
    print(f"MiB in the middle {middle:.0f}, at the end {end:.0f}")
    assert end < 1.1 * middle
