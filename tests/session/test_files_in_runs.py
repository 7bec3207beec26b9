"""Files at a bad moment: twice, changed, moved away, held, dark, oddly named. No run ends for one of them."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import h5py
import msgpack
import pytest
from ranks import alone, on_ranks, small_job
from runkit import (
    ALONE,
    FEATURES,
    CutOffError,
    Meanwhile,
    carry_out,
    class_tasks,
    job_in,
    job_in_existing,
    until,
)

from rehearsal_kit.data.open_experience import Shelf
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.scan_tasks import split_scan
from rehearsal_kit.data.scans.opening import open_scan
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.record.commands import Arrived, FinishStream, Skip, Steer, TakeCheckpoint, Watch
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import (
    Applied,
    CheckpointKept,
    Evaluated,
    Noted,
    TaskArrived,
    TaskEnded,
    TaskSetAside,
    Unevaluated,
    to_plain,
)
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.tables import results_table
from rehearsal_kit.widgets.status import tasks_html


def ended(timeline) -> list[int]:
    return [record.task for record in timeline.records(TaskEnded)]


def test_one_file_is_one_task_until_it_is_set_aside(tmp_path):
    first, second = class_tasks(tmp_path / "tasks", tasks=2)
    link = tmp_path / "link.h5"
    link.symlink_to(second.path)
    again = Arrived(name="again", path=str(link))
    plan = [(0, first), (0, second), (0, again), (0, Skip(task=1)), (0, again), (0, FinishStream())]
    outcome, timeline = carry_out(ALONE, job_in(tmp_path / "run"), plan)
    assert outcome == "finished"
    assert [record.name for record in timeline.records(TaskArrived)] == [first.name, second.name, "again"]
    (refused,) = [record.refused for record in timeline.records(Applied) if record.refused]
    assert f"{link} is task 1 already ({second.name})" in refused
    assert ended(timeline) == [0, 2]


def test_a_watched_file_that_was_submitted_is_no_second_task(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    plan = [(0, tasks[0]), (0, Watch(pattern=str(tmp_path / "tasks" / "*.h5"))), (0, FinishStream())]
    _, timeline = carry_out(ALONE, job_in(tmp_path / "run"), plan)
    assert [record.path for record in timeline.records(TaskArrived)] == [task.path for task in tasks]


def test_a_file_that_changes_while_it_waits_is_set_aside_and_taken_as_new_when_a_person_says_so(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    other = class_tasks(tmp_path / "other", tasks=2, each=30)
    network = Meanwhile(4, lambda: shutil.copyfile(other[1].path, tasks[1].path))
    plan = [*[(0, task) for task in tasks], (8, tasks[1]), (8, FinishStream())]
    outcome, timeline = carry_out(ALONE, job_in(tmp_path / "run"), plan, network=network)
    (aside,) = timeline.records(TaskSetAside)
    assert aside.task == 1
    assert "1.h5 is not the file that it was" in aside.reason
    assert outcome == "finished"
    assert ended(timeline) == [0, 2]


def test_a_file_whose_times_have_changed_but_not_its_bytes_is_still_the_same(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    network = Meanwhile(4, lambda: os.utime(tasks[1].path, (1, 1)))
    _, timeline = carry_out(
        ALONE,
        job_in(tmp_path / "run"),
        [*[(0, task) for task in tasks], (0, FinishStream())],
        network=network,
    )
    assert ended(timeline) == [0, 1]
    assert not timeline.records(Unevaluated)


def moved_away(groups, folder, tasks):
    spec = job_in_existing(folder, strategy=ER())
    network = Meanwhile(20, lambda: Path(tasks[0].path).unlink(missing_ok=True))
    plan = [*[(0, task) for task in tasks], (0, FinishStream())]
    outcome, timeline = carry_out(groups, spec, plan, network=network)
    return (
        outcome,
        ended(timeline),
        [(record.task, record.reason) for record in timeline.records(Unevaluated)],
        {record.after for record in timeline.records(Evaluated) if record.task == 0},
    )


def test_a_trained_task_that_is_moved_away_is_left_unevaluated_on_all_ranks_alike(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=3)
    spec = job_in(tmp_path / "run")
    first, second = on_ranks(2, tmp_path, moved_away, spec.run.path, tasks)
    assert first[:2] == ("finished", [0, 1, 2])
    assert second[0] == "finished"
    assert [task for task, _ in first[2]] == [0, 0]  # watched and test, each told once
    assert all("0.h5: there is no such file" in reason for _, reason in first[2])
    assert max(first[3]) < 2


def test_a_run_is_gone_on_with_though_what_it_was_trained_on_is_gone(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=3)
    spec = job_in(tmp_path / "run")
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (22, TakeCheckpoint())]
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=26)
    until(lambda: find_checkpoints(spec.run.checkpoints))
    Path(tasks[0].path).unlink()
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert ended(timeline)[-1] == 2
    assert {record.task for record in timeline.records(Unevaluated)} == {0}
    told = Timeline.load(spec.run.timeline)
    assert "0.h5: there is no such file" in results_table(told)["not evaluated"][0]
    assert list(results_table(told)["not evaluated"][1:]) == ["", ""]
    assert "cannot be evaluated any more: " in tasks_html(told)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    beamline = Beamline(folder=tmp_path_factory.mktemp("scans"), scans=2, seed=1)
    return [Arrived(name=f"scan {n}", path=str(beamline.write(n))) for n in range(2)]


def test_a_task_whose_held_out_frames_are_dark_has_no_error_rather_than_the_best(tmp_path, scans):
    path = shutil.copyfile(scans[0].path, tmp_path / "dark.cxi")
    whole = split_scan(open_scan(scans[0].path), scans[0], Preparation(size=16, scale=1.0))
    with h5py.File(path, "r+") as file:
        counts = file["/entry_1/instrument_1/detector_1/data"]
        for frame in sorted([*whole.watched, *whole.test]):
            counts[frame] = 0
    dark = Arrived(name="dark", path=str(path))
    outcome, timeline, _ = alone(small_job(tmp_path / "run"), dark, FinishStream())
    assert outcome == "finished"
    assert ended(timeline) == [0]
    assert not timeline.records(Evaluated)
    told = timeline.records(Unevaluated)
    assert {record.split for record in told} == {"watched", "test"}
    assert all("has any counts" in record.reason for record in told)
    assert [record.error for record in timeline.records(CheckpointKept)] == [None]
    assert results_table(timeline)[["error when learned", "error now"]].isna().all(axis=None)


def odd_name(groups, folder, plan):
    outcome, timeline = carry_out(groups, job_in_existing(folder), plan)
    for record in timeline.records():
        msgpack.packb(to_plain(record))
    return outcome, ended(timeline), [to_plain(record)["path"] for record in timeline.records(TaskSetAside)]


def test_a_file_name_may_be_any_bytes(tmp_path):
    (good,) = class_tasks(tmp_path / "tasks", tasks=1)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/scan_\xff\x1b.h5")
    shutil.copyfile(good.path, odd)
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/bad_\xff.h5")
    Path(bad).write_text("no scan")
    plan = [(0, Arrived(name=Path(path).stem, path=path)) for path in (bad, odd)] + [(0, FinishStream())]
    spec = job_in(tmp_path / "run")
    first, second = on_ranks(2, tmp_path, odd_name, spec.run.path, plan)
    assert first == ("finished", [0], [f"{tmp_path}/bad_\\udcff.h5"])
    assert second[0] == "finished"
    assert [entry.get("path") for entry in read_ledger(spec.run.effects)[:2]] == [bad, odd]


def test_a_pipe_that_matches_is_said_and_the_run_goes_on(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=1)
    os.mkfifo(tmp_path / "tasks" / "1.h5")
    plan = [(0, Watch(pattern=str(tmp_path / "tasks" / "*.h5"))), (0, FinishStream())]
    outcome, timeline = carry_out(ALONE, job_in(tmp_path / "run"), plan)
    assert outcome == "finished"
    assert [record.path for record in timeline.records(TaskArrived)] == [tasks[0].path]
    assert ["1.h5 matches" in record.text for record in timeline.records(Noted)] == [True]


def test_commands_pass_by_a_file_that_is_waited_for_and_the_stream_does_not_end_without_it(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    writer = open(tasks[1].path, "r+b")
    fcntl.flock(writer, fcntl.LOCK_EX)
    plan = [*[(0, task) for task in tasks], (0, FinishStream()), (5, Steer(learning_rate=0.01))]
    spec = job_in(tmp_path / "run")
    outcome, timeline = carry_out(ALONE, spec, plan, network=Meanwhile(15, writer.close))
    assert outcome == "finished"
    assert ended(timeline) == [0, 1]
    kinds = [entry["kind"] for entry in read_ledger(spec.run.effects)]
    assert kinds.index("Steer") < kinds.index("Arrived", 1) < kinds.index("FinishStream")


def test_experiences_of_tasks_that_are_over_take_next_to_no_memory(tmp_path):
    shelf = Shelf(size=2)
    tasks = class_tasks(tmp_path / "tasks", tasks=5)
    known = [shelf.opened(task, Preparation()) for task in tasks]
    assert [shelf.get(each.key) is not None for each in known] == [False] * 3 + [True] * 2
    assert known[0].count("training") == 48
    assert known[0].raw_shape == (FEATURES,)
    assert shelf.get(known[0].key) is not None
