"""What a run remembers of how it ended, and what becomes of it on other ranks or with data that are gone."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from ranks import on_ranks
from runkit import (
    ALONE,
    TRAINING,
    CutOffError,
    Meanwhile,
    Net,
    Planned,
    carry_out,
    class_tasks,
    job_in,
    job_in_existing,
    same,
    until,
    weights_of,
)
from walks import ON_DEVICE

from rehearsal_kit.base.errors import RunFolderError
from rehearsal_kit.learning.strategies.references import FromScratch, Incremental
from rehearsal_kit.rank.checkpoint_files import STATE, find_checkpoints
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import (
    BeginAgain,
    FinishStream,
    Note,
    Reopen,
    RollBack,
    Skip,
    Steer,
    Stop,
    TakeCheckpoint,
)
from rehearsal_kit.record.effects import effects_of, has_ended, segments
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointFailed,
    Evaluated,
    Noted,
    Restored,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
    Unevaluated,
)
from rehearsal_kit.record.replay_queue import Outstanding
from rehearsal_kit.record.run_states import CHANGES, FATES, Event, Fate
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.replay import compare_runs

STEPS = 18
"""Of a task on one rank: 48 samples, 8 in a mini-batch, 3 epochs."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks", tasks=4)


def cut_off_at(step, spec, plan, *, checkpoints=1, **named):
    """Ranks that die at a step, with so many checkpoints whole on disk."""
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=step, checkpoints=checkpoints, **named)


def kinds(spec):
    return [(entry["kind"], entry["step"]) for entry in read_ledger(spec.run.effects)]


def timeless(records):
    clock = {"time", "seconds"}
    return [{name: value for name, value in asdict(each).items() if name not in clock} for each in records]


def is_replayed(spec, folder):
    """Every part of a run on one rank once more: the same weights, effects and evaluations."""
    again = job_in(folder)
    for _ in segments(read_ledger(spec.run.effects)):
        carry_out(ALONE, replace(again, replays=spec.run), [])
    assert [each for each in compare_runs(spec.run, again.run) if not each.same] == []
    assert read_ledger(again.run.effects) == read_ledger(spec.run.effects)
    for kind in (Evaluated, BranchBegan, TaskArrived, TaskBegan, TaskEnded):
        recorded, replayed = (Timeline.load(each.run.timeline).records(kind) for each in (spec, again))
        assert timeless(replayed) == timeless(recorded)
    return again


# Ends and beginnings ------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_stays_so_until_it_is_reopened(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream()), (10, Stop())]
    spec = job_in(tmp_path / "run")
    assert carry_out(ALONE, spec, plan)[0] == "stopped"
    recorded = kinds(spec)
    assert recorded[-2:] == [("Stop", 10), ("TakeCheckpoint", 10)]
    assert has_ended(spec.run)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert (outcome, timeline.last(Restored).step) == ("stopped", 10)
    assert kinds(spec) == recorded
    outcome, _ = carry_out(ALONE, spec, [*plan, (10, Reopen())], generation=3)
    assert outcome == "finished"
    assert kinds(spec)[len(recorded)] == ("Reopen", 10)
    whole = job_in(tmp_path / "whole")
    carry_out(ALONE, whole, plan[:-1])
    assert same(weights_of(spec), weights_of(whole))
    is_replayed(spec, tmp_path / "again")


@pytest.mark.parametrize("lost", [1, 2])
def test_a_stop_is_not_carried_out_twice_where_its_checkpoint_is_lost(tmp_path, tasks, lost):
    """The Stop stands in what is followed then; the Reopen that waits comes at the same step."""
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream()), (5, TakeCheckpoint()), (10, Stop())]
    spec = job_in(tmp_path / "run")
    carry_out(ALONE, spec, plan)
    for number in (2, 1)[:lost]:
        shutil.rmtree(spec.run.checkpoints / f"{number:06d}")
    outcome, _ = carry_out(ALONE, spec, [*plan, (10, Reopen())], generation=2)
    assert outcome == "finished"
    assert [kind for kind, _ in kinds(spec)].count("Stop") == 1
    assert ("Reopen", 10) in kinds(spec)
    is_replayed(spec, tmp_path / "again")


def test_a_run_that_finished_waits_for_more_and_its_replay_evaluates_what_it_did(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, FinishStream())]
    spec = job_in(tmp_path / "run", training=replace(TRAINING, evaluated=0))
    assert carry_out(ALONE, spec, plan)[0] == "finished"
    assert carry_out(ALONE, spec, plan, generation=2)[0] == "finished"
    plan += [(STEPS, Reopen()), (STEPS, tasks[1]), (STEPS, tasks[2]), (STEPS, FinishStream())]
    assert carry_out(ALONE, spec, plan, generation=3)[0] == "finished"
    assert [kind for kind, _ in kinds(spec)].count("Finished") == 2
    assert [record.task for record in Timeline.load(spec.run.timeline).records(TaskEnded)] == [0, 1, 2]
    again = job_in(tmp_path / "again", training=spec.training)
    carry_out(ALONE, replace(again, replays=spec.run), [])
    assert read_ledger(again.run.effects) == read_ledger(spec.run.effects)
    told = [timeless(Timeline.load(each.run.timeline).records(Evaluated)) for each in (spec, again)]
    assert told[0] == told[1]


def test_rolling_back_from_the_end_of_a_run_goes_on(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, FinishStream()), (5, TakeCheckpoint())]
    plan += [(9, Stop()), (9, RollBack(checkpoint=1))]
    spec = job_in(tmp_path / "run")
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    assert [(record.branch, record.step) for record in timeline.records(TaskEnded)] == [(1, STEPS)]


class Closing(Planned):
    """The process of rank 0 is about to end once the run has come to a step."""

    def __init__(self, *arguments, at, **named):
        super().__init__(*arguments, **named)
        self.at = at

    def empty(self):
        if self.rank.step >= self.at:
            self.rank.interrupt()
        return super().empty()


def interrupted(spec, plan, *, at):
    timeline = Timeline()
    mailbox = Closing(plan, cut=None, ledger=spec.run.wishes, at=at)
    rank = Rank(
        replace(spec, network=Net()),
        ALONE,
        mailbox=mailbox,
        publish=lambda record, line: timeline.append(record),
    )
    mailbox.rank = rank
    try:
        return rank.run()
    finally:
        mailbox.close()


def test_the_end_of_a_process_is_no_wish(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream())]
    spec = job_in(tmp_path / "run")
    assert interrupted(spec, plan, at=7) == "interrupted"
    assert kinds(spec)[-1] == ("TakeCheckpoint", 7)
    assert "Stop" not in [kind for kind, _ in kinds(spec)]
    assert not has_ended(spec.run)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert (outcome, timeline.last(Restored).step) == ("finished", 7)
    whole = job_in(tmp_path / "whole")
    carry_out(ALONE, whole, plan)
    assert same(weights_of(spec), weights_of(whole))


def test_an_interrupted_run_is_replayed_as_far_as_it_came(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream())]
    spec = job_in(tmp_path / "run")
    interrupted(spec, plan, at=STEPS + 4)
    is_replayed(spec, tmp_path / "again")


def test_an_interruption_while_effects_are_followed_loses_none_of_them(tmp_path, tasks):
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream()), (3, TakeCheckpoint())]
    plan += [(9, Steer(batch=5)), (12, Note(text="here"))]
    spec = job_in(tmp_path / "run")
    cut_off_at(14, spec, plan)
    recorded = read_ledger(spec.run.effects)
    assert interrupted(spec, plan, at=6) == "interrupted"
    assert read_ledger(spec.run.effects) == recorded
    carry_out(ALONE, spec, plan, generation=3)
    whole = job_in(tmp_path / "whole")
    carry_out(ALONE, whole, plan)
    assert same(weights_of(spec), weights_of(whole))


# The tables ---------------------------------------------------------------------------------------------


def a_course(spec, number):
    values = {
        "branch": number - 1,
        "live_settings": replace(LiveSettings.of(spec), training=replace(spec.training, batch=number)),
        "paused": bool(number % 2),
        "finishing": bool(number % 2),
        "trouble": f"trouble {number}",
        "outcome": f"outcome {number}",
        "kept": f"kept {number}",
        "spoilt": [range(number)],
    }
    return RunState(**{field.name: values.get(field.name, number) for field in fields(RunState)})


def test_the_table_names_every_part_of_where_a_run_is_and_what_becomes_of_it(tmp_path):
    spec = job_in(tmp_path / "run")
    assert set(FATES) == {field.name for field in fields(RunState)}
    assert all(set(fates) == set(Event) for fates in FATES.values())
    command = BeginAgain(checkpoint=4, ranks=2, begins=50, checkpoints=60, parent=0, left=9)
    events = {
        Event.RESTART: lambda now, there: now.restart(there),
        Event.BEGIN_AGAIN: lambda now, there: (now.restart(there), now.begin_again(command)),
        Event.ROLL_BACK: lambda now, there: now.back_to(there),
    }
    for event, happens in events.items():
        before, there, now = a_course(spec, 8), a_course(spec, 3), a_course(spec, 8)
        happens(now, there)
        for name, fates in FATES.items():
            values = [getattr(each, name) for each in (before, there, now)]
            expected = {Fate.NOW: values[0], Fate.THERE: values[1], Fate.CLEARED: ""}
            if fates[event] is Fate.NEW:
                assert values[2] > max(values[:2]), (event, name)
            else:
                assert values[2] == expected[fates[event]], (event, name)
    assert RunState.from_plain(
        json.loads(json.dumps(a_course(spec, 5).to_plain())), LiveSettings.of(spec)
    ) == a_course(spec, 5)


def test_commands_change_the_state_of_a_run_as_the_table_says(tmp_path):
    spec = job_in(tmp_path / "run")
    for kind, change in CHANGES.items():
        for number in (3, 8):
            now, before = a_course(spec, number), a_course(spec, number)
            now.change(kind)
            assert now.outcome == (before.outcome if change.outcome is None else change.outcome)
            assert now.paused == (before.paused if change.paused is None else change.paused)


# Other ranks --------------------------------------------------------------------------------------------


class Dying(Net):
    """The process dies in a step, once there are so many checkpoints."""

    def __init__(self, run, *, cut, checkpoints):
        super().__init__(cut=cut)
        self.run, self.checkpoints = run, checkpoints

    def forward(self, image):
        if self.steps == self.cut:
            until(lambda: len(find_checkpoints(self.run.checkpoints)) >= self.checkpoints)
        return super().forward(image)


def on(groups, folder, plan, cut, generation, replays=None):
    if groups.rank == 0 and not folder.exists():
        job_in(folder)
    groups.gather("")
    spec = job_in_existing(folder, training=replace(TRAINING, bucket_mib=1e-4))
    # Rows are exchanged on the device, among many sums of gradients; in a replay as on a CPU.
    if replays is None:
        spec = replace(spec, room=ON_DEVICE)
    else:
        spec = replace(spec, replays=job_in_existing(replays).run)
    try:
        network = Dying(spec.run, cut=cut, checkpoints=generation)
        return carry_out(groups, spec, plan, generation=generation, network=network)[0]
    except CutOffError:
        return "cut"


def test_other_ranks_decide_again_what_was_decided_and_a_replay_has_the_ranks_of_each_part(tmp_path, tasks):
    """Two ranks, then one, then two: tasks end, and somebody steers, after the last checkpoint of each.

    Shards and buffers lie on the device, but not in the replay.
    """
    plan = [*[(0, task) for task in tasks[:3]], (0, FinishStream()), (3, TakeCheckpoint())]
    plan += [(6, Steer(learning_rate=0.015)), (10, Skip(task=2)), (12, tasks[3]), (13, Note(text="seen"))]
    for name in ("first", "last", "replay 1", "replay 2"):
        (tmp_path / name).mkdir()
    run = job_in(tmp_path / "run").run
    assert on_ranks(2, tmp_path / "first", on, run.path, plan, 15, 1) == ["cut"] * 2
    first = read_ledger(run.effects)
    assert ("TaskDone", 9) in [(entry["kind"], entry["step"]) for entry in first]
    plan += [(30, TakeCheckpoint()), (34, Steer(learning_rate=0.01))]
    assert on(ALONE, run.path, plan, 36, 2) == "cut"
    assert on_ranks(2, tmp_path / "last", on, run.path, plan, None, 3) == ["finished"] * 2

    effects = read_ledger(run.effects)
    assert effects[: len(first)] == first
    parts = segments(effects)
    assert [{entry["world_size"] for entry in part} for part in parts] == [{2}, {1}, {2}]
    began = parts[1][0]
    assert (began["kind"], began["checkpoint"], began["step"], began["begins"]) == ("BeginAgain", 1, 3, 1)
    again = [(entry["kind"], entry["branch"]) for entry in parts[1] if entry.get("again")]
    assert again == [("Steer", 1), ("Skip", 1), ("Arrived", 1), ("Note", 1)]  # it came after the Skip
    assert not [entry for entry in effects if "refused" in entry]
    lineage = Timeline.load(run.timeline).lineage()
    assert sorted(record.task for record in lineage.records(TaskEnded)) == [0, 1, 3]
    assert any("lie on the device" in record.text for record in lineage.records(Noted))
    steps = lineage.losses()[0]
    assert steps == list(range(len(steps)))

    replayed = tmp_path / "again"
    assert set(on_ranks(2, tmp_path / "replay 1", on, replayed, [], None, 1, run.path)) == {"stopped"}
    on(ALONE, replayed, [], None, 2, run.path)
    assert on_ranks(2, tmp_path / "replay 2", on, replayed, [], None, 3, run.path) == ["finished"] * 2
    compared = compare_runs(run, job_in_existing(replayed).run)
    assert [each for each in compared if not each.same] == []
    assert len(compared) > 5
    assert read_ledger(job_in_existing(replayed).run.effects) == effects


def entry(kind, step, number=1, **values):
    return {"branch": 0, "step": step, "world_size": 2, "number": number, "kind": kind, **values}


def test_what_is_decided_again_are_arrivals_at_once_and_decisions_at_their_steps():
    ledger = [
        entry("Arrived", 0, path="a", name="a"),
        entry("TakeCheckpoint", 3, 0, spare=None),
        entry("Steer", 5),
        entry("TaskDone", 9, 0, task=0),
        entry("SetAside", 9, 0, task=1, name="b", path="b"),
        entry("TakeCheckpoint", 10, 0, spare=None),
        entry("Pause", 11, refused="no"),
        entry("Arrived", 12, path="c", name="c"),
        entry("Reorder", 14, order=[3]),
        entry("Skip", 15, task=2),
        entry("Resume", 40),
    ]
    held = effects_of(ledger)
    assert (held.numbers, held.checkpoints, held.branches, held.last) == ({1: 2, 2: 6}, 2, 1, (0, 40))
    # The ranks that begin again can only read the first checkpoint.
    again = {**entry("BeginAgain", 3, 0), "checkpoint": 1, "begins": 1, "lost": []}
    held = effects_of([*ledger, again])
    assert [each["kind"] for each in held.entries] == ["Arrived", "TakeCheckpoint", "BeginAgain"]
    assert (held.numbers, held.checkpoints, held.branches) == ({1: 2}, 2, 2)
    kinds = [each["kind"] for each in held.outstanding]
    assert kinds == ["Arrived", "Steer", "Reorder", "Skip", "Resume"]

    left = Outstanding(held.outstanding)
    nothing = {"all_of_them": False, "next_one": False}
    assert [each["kind"] for each in left.due(3, **nothing)] == ["Arrived"]
    assert left.due(4, **nothing) == []
    assert [each["kind"] for each in left.due(20, **nothing)] == ["Steer", "Reorder", "Skip"]
    assert left.due(21, **nothing) == []
    assert [each["kind"] for each in left.due(21, all_of_them=False, next_one=True)] == ["Resume"]

    # What was decided again once is not outstanding any more.
    done = [{**entry("Arrived", 3, path="c", name="c"), "branch": 1, "again": True}]
    done += [{**entry("Steer", 5), "branch": 1, "again": True}]
    kinds = [each["kind"] for each in effects_of([*ledger, again, *done]).outstanding]
    assert kinds == ["Reorder", "Skip", "Resume"]
    # And once more on other ranks: what was decided again, then the rest.
    twice = [*ledger, again, *done, {**again, "begins": 2}]
    kinds = [each["kind"] for each in effects_of(twice).outstanding]
    assert kinds == ["Arrived", "Steer", "Reorder", "Skip", "Resume"]


# Data that are gone -------------------------------------------------------------------------------------


def own_tasks(folder, count=4):
    """Files that a test may move away."""
    return class_tasks(folder, tasks=count)


def moved(task):
    path = Path(task.path)
    path.rename(path.with_suffix(".archived"))


def test_a_run_whose_trained_task_was_moved_away_goes_on(tmp_path):
    some = own_tasks(tmp_path / "tasks")
    plan = [(0, some[0]), (0, some[1]), (0, FinishStream()), (STEPS + 2, TakeCheckpoint())]
    plan += [(STEPS + 5, Steer(batch=4))]
    spec = job_in(tmp_path / "run")
    cut_off_at(STEPS + 9, spec, plan)
    moved(some[0])
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert not timeline.records(BranchBegan)  # what was learned of it stays, and nothing has to be redone
    assert {(record.task, record.split) for record in timeline.records(Unevaluated)} == {
        (0, "watched"),
        (0, "test"),
    }
    assert all(some[0].path in record.reason for record in timeline.records(Unevaluated))
    assert [record.task for record in timeline.records(TaskEnded)] == [1]
    assert ("Steer", STEPS + 5) in kinds(spec)[-4:]
    # Once more from the same checkpoint: it is not recorded twice.
    for number in list(find_checkpoints(spec.run.checkpoints))[1:]:
        shutil.rmtree(spec.run.checkpoints / f"{number:06d}")
    before = kinds(spec)
    assert carry_out(ALONE, spec, plan, generation=3)[0] == "finished"
    assert kinds(spec) == before


def test_a_task_that_is_gone_in_its_middle_is_set_aside_and_its_steps_are_taken_back(tmp_path):
    some = own_tasks(tmp_path / "tasks")
    plan = [(0, some[0]), (0, some[1]), (0, some[2]), (0, FinishStream()), (STEPS + 2, TakeCheckpoint())]
    spec = job_in(tmp_path / "run", strategy=Incremental())
    cut_off_at(STEPS + 9, spec, plan)
    moved(some[1])
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    (aside,) = timeline.records(TaskSetAside)
    assert (aside.task, aside.path) == (1, some[1].path)
    assert [record.task for record in timeline.records(TaskEnded)] == [2]


def test_data_that_came_after_the_checkpoint_and_are_gone_do_not_end_the_run(tmp_path):
    some = own_tasks(tmp_path / "tasks")
    plan = [(0, some[0]), (3, TakeCheckpoint()), (5, some[1]), (6, some[2]), (7, FinishStream())]
    spec = job_in(tmp_path / "run")
    cut_off_at(STEPS + 3, spec, plan)
    moved(some[1])
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert [record.path for record in timeline.records(TaskSetAside)] == [some[1].path]
    ended = Timeline.load(spec.run.timeline).lineage().records(TaskEnded)
    assert [record.branch for record in ended] == [1, 1]


def test_training_from_scratch_goes_on_with_the_tasks_that_can_be_read(tmp_path):
    some = own_tasks(tmp_path / "tasks")
    plan = [*[(0, task) for task in some[:3]], (0, FinishStream())]
    changes = {"strategy": FromScratch(), "training": replace(TRAINING, evaluated=0)}
    spec = job_in(tmp_path / "run", **changes)
    path = Path(some[0].path)
    network = Meanwhile(STEPS + 5, lambda: path.rename(path.with_suffix(".archived")))
    outcome, timeline = carry_out(ALONE, spec, plan, network=network)
    assert outcome == "finished"
    assert [record.steps for record in timeline.records(TaskBegan)] == [STEPS, 2 * STEPS, 2 * STEPS]
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 1, 2]
    assert [entry["task"] for entry in read_ledger(spec.run.effects) if entry["kind"] == "SetAside"] == [0]
    # Once the file is back, a replay leaves it out all the same.
    path.with_suffix(".archived").rename(path)
    again = job_in(tmp_path / "again", **changes)
    carry_out(ALONE, replace(again, replays=spec.run), [])
    assert [each for each in compare_runs(spec.run, again.run) if not each.same] == []


# Errors of a task ---------------------------------------------------------------------------------------


class Failing(Net):
    """Cannot take some step, nor take it once more."""

    def __init__(self, at, *, cut=None):
        super().__init__(cut=cut)
        self.at, self.left = at, 2

    def forward(self, image):
        if self.training and self.steps == self.at and self.left:
            self.left -= 1
            raise ValueError("no such pattern")
        return super().forward(image)


@pytest.mark.parametrize("at", [0, 4, STEPS + 3])
def test_an_error_in_the_middle_of_a_task_sets_it_aside_and_the_run_goes_on(tmp_path, tasks, at):
    plan = [*[(0, task) for task in tasks[:3]], (0, FinishStream()), (3, TakeCheckpoint())]
    spec = job_in(tmp_path / "run")
    cut_off_at(at + STEPS // 2, spec, plan, network=Failing(at), checkpoints=int(at > 3))
    outcome, _ = carry_out(ALONE, spec, plan, generation=2)  # this time nothing is wrong with it
    assert outcome == "finished"
    timeline = Timeline.load(spec.run.timeline)
    (aside,) = timeline.records(TaskSetAside)
    assert (aside.task, aside.step) == (at // STEPS, at + 1)
    assert "ValueError: no such pattern" in aside.reason
    assert "rank 0" in aside.reason
    assert {record.task for record in timeline.records(TaskEnded)} == {0, 1, 2} - {aside.task}
    is_replayed(spec, tmp_path / "again")


def failing(groups, folder, plan):
    at = 4 if groups.rank == 1 else None
    outcome, timeline = carry_out(groups, job_in_existing(folder), plan, network=Failing(at))
    ended = [(record.task, record.weights) for record in timeline.records(TaskEnded)]
    return outcome, [record.reason for record in timeline.records(TaskSetAside)], ended


def test_an_error_on_one_rank_sets_the_task_aside_on_all(tmp_path, tasks):
    spec = job_in(tmp_path / "run")
    plan = [(0, tasks[0]), (0, tasks[1]), (0, FinishStream())]
    first, second = on_ranks(2, tmp_path, failing, spec.run.path, plan)
    assert first[0] == second[0] == "finished"
    assert "(rank 1, at step 4)" in first[1][0]
    assert [task for task, _ in first[2]] == [1]


# What is found on disk ----------------------------------------------------------------------------------


def cut_off(folder, tasks, *, identity):
    spec = job_in(folder)
    spec.run.settings.write_text(json.dumps({"identity": identity}))
    plan = [(0, tasks[0]), (0, FinishStream()), (3, TakeCheckpoint()), (6, TakeCheckpoint())]
    cut_off_at(9, spec, plan, checkpoints=2)
    return spec, plan


def of_another_run(spec, tmp_path, tasks):
    other, _ = cut_off(tmp_path / "other", tasks, identity="other")
    shutil.rmtree(spec.run.checkpoints / "000002")
    shutil.copytree(other.run.checkpoints / "000002", spec.run.checkpoints / "000002")


def changed_manifest(spec, **values):
    path = spec.run.checkpoints / "000002" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def of_another_format(spec, tmp_path, tasks):
    changed_manifest(spec, format=1)


def without_a_lesson(spec, tmp_path, tasks):
    import hashlib

    path = spec.run.checkpoints / "000002" / STATE
    state = json.loads(path.read_text())
    del state["lesson"]
    path.write_text(json.dumps(state))
    files = json.loads((path.parent / "manifest.json").read_text())["files"]
    content = path.read_bytes()
    files[STATE] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed_manifest(spec, files=files)


def from_elsewhere(spec, tmp_path, tasks):
    shutil.rmtree(spec.run.checkpoints / "000002")
    shutil.copytree(spec.run.checkpoints / "000001", spec.run.checkpoints / "000002")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_another_run, "is of run other, this one is ours"),
        (of_another_format, "has format 1"),
        (without_a_lesson, "KeyError: 'lesson'"),
        (from_elsewhere, "was taken at step 3 of branch 0, the ledger says at step 6"),
    ],
)
def test_a_checkpoint_that_cannot_be_taken_up_is_passed_over(tmp_path, tasks, spoil, said):
    spec, plan = cut_off(tmp_path / "run", tasks, identity="ours")
    spoil(spec, tmp_path, tasks)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert (outcome, timeline.last(Restored).checkpoint) == ("finished", 1)
    (failed,) = timeline.records(CheckpointFailed)
    assert failed.checkpoint == 2
    assert said in failed.reason


def test_where_no_checkpoint_can_be_used_that_is_said(tmp_path, tasks):
    spec, plan = cut_off(tmp_path / "run", tasks, identity="ours")
    spec.run.settings.write_text(json.dumps({"identity": "mine"}))
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    failed = {record.checkpoint: record.reason for record in timeline.records(CheckpointFailed)}
    assert set(failed) == {0, 1, 2}
    assert "none of the 2 checkpoints" in failed[0]
    assert "from its very beginning" in failed[0]


def test_a_damaged_line_of_effects_is_refused_with_advice_that_works(tmp_path, tasks):
    spec, plan = cut_off(tmp_path / "run", tasks, identity="ours")
    lines = spec.run.effects.read_bytes().split(b"\n")
    lines[3] = lines[3][:10] + b"\xff\x00"
    spec.run.effects.write_bytes(b"\n".join(lines))
    with pytest.raises(RunFolderError, match=r"line 4 of .* is damaged") as refused:
        carry_out(ALONE, spec, plan, generation=2)
    advice = str(refused.value).partition("before it: ")[2]
    subprocess.run(advice, shell=True, check=True)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=3)
    assert (outcome, timeline.last(Restored).checkpoint) == ("finished", 1)


def test_a_damaged_line_of_the_timeline_is_said_and_the_run_goes_on(tmp_path, tasks):
    spec, plan = cut_off(tmp_path / "run", tasks, identity="ours")
    lines = spec.run.timeline.read_bytes().split(b"\n")
    lines[2], lines[3] = b"\xff\xfe{", b'{"record": "Steps"}'
    spec.run.timeline.write_bytes(b"\n".join(lines))
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert not timeline.records(Noted)  # the kernels that read it say so


# What a roll back leaves --------------------------------------------------------------------------------


def test_what_a_roll_back_leaves_is_said_and_a_skipped_task_can_be_submitted_again(tmp_path, tasks):
    plan = [*[(0, task) for task in tasks[:2]], (3, TakeCheckpoint()), (4, Skip(task=1)), (5, tasks[2])]
    plan += [(6, RollBack(checkpoint=1)), (8, tasks[1]), (8, FinishStream())]
    spec = job_in(tmp_path / "run")
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    (rolled,) = [record for record in timeline.records(Applied) if record.kind == "RollBack"]
    assert "task 2 arrived since then and will be trained" in rolled.remark
    assert f"task 1 ({tasks[1].path}) was skipped or set aside since then and stays so" in rolled.remark
    assert "submit its file again" in rolled.remark
    lineage = timeline.lineage()
    assert [record.task for record in lineage.records(TaskEnded)] == [0, 2, 3]
    assert lineage.tasks()[3].path == tasks[1].path
