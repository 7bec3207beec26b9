"""A run that is cut off at any step goes on from its checkpoints and ends as if it had not been."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
from runkit import ALONE, CutOffError, carry_out, class_tasks, job_in, same, until, weights_of

from rehearsal_kit.base.errors import CheckpointError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.checkpoint_loader import load_checkpoint
from rehearsal_kit.record.commands import (
    Evaluate,
    FinishStream,
    FinishTask,
    Note,
    Pause,
    Reorder,
    Resume,
    RollBack,
    Skip,
    Steer,
    TakeCheckpoint,
)
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointFailed,
    CheckpointKept,
    Evaluated,
    Noted,
    Restored,
    TaskArrived,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.timeline import Timeline


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks")


@pytest.fixture
def plan(tasks):
    """Everything that may be steered, between step 0 and the end of a run of about 75 steps."""
    return [
        *[(0, task) for task in tasks],
        (0, FinishStream()),
        (3, TakeCheckpoint()),
        (5, Steer(learning_rate=0.01, representatives=4, candidates=2, capacity=30)),
        (9, Steer(batch=5)),
        (12, TakeCheckpoint()),
        (12, Steer(strategy="ER")),
        (15, Steer(policy="reservoir")),
        (20, Note(text="the sample has moved")),
        (22, TakeCheckpoint()),
        (24, Reorder(order=(4,))),
        (27, FinishTask()),
        (30, Steer(strategy="DERpp", alpha=0.3, beta=0.4)),
        (33, RollBack(checkpoint=2)),
        (35, Pause()),
        (35, Steer(policy="fifo")),
        (35, Resume()),
        (40, Evaluate()),
        (44, TakeCheckpoint()),
        (50, Skip(task=4)),
    ]


@pytest.fixture
def whole(tmp_path, plan):
    spec = job_in(tmp_path / "whole")
    return spec, *carry_out(ALONE, spec, plan)


def told(spec):
    return Timeline.load(spec.run.timeline)


def test_commands_do_what_they_say(whole, tasks):
    _, outcome, timeline = whole
    assert outcome == "finished"
    assert not [record for record in timeline.records(Applied) if record.refused]
    assert [record.text for record in timeline.records(Noted)] == ["the sample has moved"]
    (branch,) = timeline.records(BranchBegan)
    assert (branch.branch, branch.step, branch.parent, branch.left, branch.checkpoint) == (1, 12, 0, 33, 2)
    skipped = [record for record in timeline.records(TaskSetAside) if "skipped" in record.reason]
    assert len(skipped) == 1
    ended = [(record.branch, record.task) for record in timeline.records(TaskEnded)]
    assert ended == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    evaluated = [record for record in timeline.records(Evaluated) if record.step == 40 and record.branch == 1]
    assert {record.split for record in evaluated} == {"watched", "test"}
    settings = timeline.records(Applied)[-1].settings
    assert {name: settings[name] for name in ("batch", "representatives", "policy", "strategy")} == {
        "batch": 5,
        "representatives": 4,
        "policy": "fifo",
        "strategy": "DERpp",  # checkpoint 2 was taken before the switch at the same step
    }


@pytest.mark.parametrize("cut", [1, 4, 10, 13, 21, 23, 26, 28, 32, 36, 45, 52])
def test_a_run_cut_off_at_a_step_ends_as_if_it_had_not_been(tmp_path, plan, whole, cut):
    spec = job_in(tmp_path / "cut")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=cut)
    outcome, timeline = carry_out(ALONE, spec, plan, generation=2)
    assert outcome == "finished"
    assert same(weights_of(spec), weights_of(whole[0]))
    (restored,) = timeline.records(Restored)
    assert restored.generation == 2
    assert _plain(read_ledger(spec.run.effects)) == _plain(read_ledger(whole[0].run.effects))
    # Nothing is told twice, and nothing is missing.
    assert told(spec).losses() == told(whole[0]).losses()
    for kind in (TaskArrived, TaskEnded, Evaluated, Noted, BranchBegan):
        assert _timeless(told(spec).records(kind)) == _timeless(told(whole[0]).records(kind))


def _plain(entries):
    return [{name: value for name, value in entry.items() if name != "digest"} for entry in entries]


def _timeless(records):
    from dataclasses import asdict

    clock = {"time", "seconds"}
    return [{name: v for name, v in asdict(r).items() if name not in clock} for r in records]


def test_a_run_is_cut_off_again_and_again(tmp_path, plan, whole):
    spec = job_in(tmp_path / "cut")
    for generation, cut in enumerate((8, 6, 25, 19, 34, 40), 1):
        with pytest.raises(CutOffError):
            carry_out(ALONE, spec, plan, cut=cut, generation=generation)
    carry_out(ALONE, spec, plan, generation=9)
    assert same(weights_of(spec), weights_of(whole[0]))


# Checkpoints -------------------------------------------------------------------------------------------


def damaged(folder, how):
    if how == "flipped byte":
        path = folder / "learner.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    elif how == "cut short":
        path = next(folder.glob("buffer-*"))
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "pickle":
        (folder / "learner.safetensors").write_bytes(pickle.dumps(Trap()))
        manifest = json.loads((folder / "manifest.json").read_text())
        import hashlib

        content = (folder / "learner.safetensors").read_bytes()
        manifest["files"]["learner.safetensors"] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))


class Trap:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return open, ("/tmp/rehearsal-kit-was-unpickled", "w")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("flipped byte", "learner.safetensors is not as it was written"),
        ("cut short", "is not as it was written"),
        ("pickle", "is not a safetensors file"),
        ("no manifest", "manifest.json cannot be read: No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(tmp_path, plan, whole, how, said):
    spec = job_in(tmp_path / "cut")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=23)
    until(lambda: 3 in find_checkpoints(spec.run.checkpoints))
    damaged(spec.run.checkpoints / "000003", how)
    _, timeline = carry_out(ALONE, spec, plan, generation=2)
    (restored,) = timeline.records(Restored)
    assert restored.checkpoint == 2
    refused = timeline.records(CheckpointFailed)
    assert refused[0].checkpoint == 3
    assert said in refused[0].reason
    assert same(weights_of(spec), weights_of(whole[0]))
    import pathlib

    assert not pathlib.Path("/tmp/rehearsal-kit-was-unpickled").exists()


def test_with_no_checkpoint_left_the_run_begins_anew_and_ends_the_same(tmp_path, plan, whole):
    spec = job_in(tmp_path / "cut")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=30)
    shutil.rmtree(spec.run.checkpoints)
    carry_out(ALONE, spec, plan, generation=2)
    assert same(weights_of(spec), weights_of(whole[0]))


def test_what_is_kept_are_the_last_the_best_and_those_gone_back_to(tmp_path, plan):
    plan = [*plan, *[(step, TakeCheckpoint()) for step in range(52, 62, 2)]]
    spec = job_in(tmp_path / "run", recovery=Recovery(checkpoint_s=1e9, keep_last=2, keep_best=1))
    _, timeline = carry_out(ALONE, spec, plan)
    found = find_checkpoints(spec.run.checkpoints)
    kept = {record.checkpoint: record for record in timeline.records(CheckpointKept)}
    assert {max(kept), max(kept) - 1, 2} <= set(found)
    best = min((record.error, number) for number, record in kept.items() if record.error is not None)[1]
    assert set(found) == {max(kept), max(kept) - 1, 2, best}
    removed = {number for record in kept.values() for number in record.removed}
    assert removed | set(found) == set(kept)
    assert all(path.stat().st_mode & 0o077 == 0 for path in spec.run.checkpoints.rglob("*"))


def test_a_checkpoint_that_cannot_be_written_costs_a_warning_and_nothing_else(tmp_path, plan, whole):
    spec = job_in(tmp_path / "run")
    spec.run.checkpoints.mkdir()
    (spec.run.checkpoints / "000001.g1.partial").write_text("in the way")
    later = [*plan]
    _, timeline = carry_out(ALONE, spec, later)
    failed = timeline.records(CheckpointFailed)
    assert [record.checkpoint for record in failed] == [1]
    assert "FileExistsError" in failed[0].reason
    assert same(weights_of(spec), weights_of(whole[0]))


def test_rolling_back_takes_the_order_of_the_tasks_back_too(tmp_path, tasks):
    """Otherwise one that was trained by then would be trained again, and another never."""
    a, b, c = tasks[:3]
    plan = [(0, a), (0, b), (0, c), (10, TakeCheckpoint()), (19, TakeCheckpoint())]
    plan += [(21, RollBack(checkpoint=1)), (21, Reorder(order=(2, 1))), (24, RollBack(checkpoint=2))]
    plan += [(26, tasks[3]), (26, FinishStream())]
    spec = job_in(tmp_path / "run")
    _, timeline = carry_out(ALONE, spec, plan)
    assert not [record for record in timeline.records(Applied) if record.refused]
    assert [record.step for record in timeline.records(BranchBegan)] == [10, 19]
    names = {task: record.name for task, record in timeline.lineage().tasks().items()}
    assert names == {number: task.name for number, task in enumerate(tasks[:4])}
    trained = [record.task for record in timeline.lineage().records(TaskEnded)]
    assert trained == [0, 1, 2, 3]


def test_rolling_back_to_what_is_not_there_changes_nothing(tmp_path, tasks):
    plan = [*[(0, task) for task in tasks[:2]], (0, FinishStream()), (4, RollBack(checkpoint=7))]
    spec = job_in(tmp_path / "run")
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    (refused,) = [record for record in timeline.records(Applied) if record.refused]
    assert "has no checkpoint 7; it has 1" in refused.refused
    assert {record.branch for record in timeline.records(TaskEnded)} == {0}
    with pytest.raises(CheckpointError, match="has no checkpoint 9"):
        load_checkpoint(spec.run, 9, ALONE, identity="")
