"""A rank alone in this process: the loop, its commands, its ledger, and what it does with bad scans."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from ranks import alone, on_ranks, small_job
from safetensors.torch import load_file

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.references import FromScratch, Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import Arrived, FinishStream, Pause, Resume, Steer, Stop
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.preview_files import read_previews
from rehearsal_kit.record.records import (
    Applied,
    Evaluated,
    Steps,
    TaskArrived,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.timeline import Timeline


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    beamline = Beamline(folder=tmp_path_factory.mktemp("scans"), scans=3, seed=1)
    return [Arrived(name=f"scan {n}", path=str(beamline.write(n))) for n in range(3)]


def drawn(timeline: Timeline) -> int:
    return sum(record.representatives for record in timeline.records(Steps))


def test_a_stream_is_trained_task_by_task_and_every_task_evaluated_after_every_task(tmp_path, scans):
    spec = small_job(tmp_path / "run")
    outcome, timeline, rank = alone(spec, *scans, FinishStream())
    assert outcome == "finished"
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 1, 2]
    assert rank.step == sum(record.steps for record in timeline.records(TaskBegan))
    assert sum(len(record.losses) for record in timeline.records(Steps)) == rank.step
    for split in ("watched", "test"):
        matrix = timeline.error_matrix(split)
        assert [[error is not None for error in row] for row in matrix] == [
            [j <= i for j in range(3)] for i in range(3)
        ]
    assert {name for record in timeline.records(Evaluated) for name in record.errors} == {
        "amplitude",
        "phase",
    }
    # Every step but the first two draws in full: the first is not augmented, at the second nothing is stored.
    assert drawn(timeline) == (rank.step - 2) * spec.rehearsal.representatives


def test_what_remains_of_a_run(tmp_path, scans):
    spec = small_job(tmp_path / "run")
    _, timeline, _ = alone(spec, *scans[:2], FinishStream())
    assert Timeline.load(spec.run.timeline).records() == timeline.records()
    weights = load_file(spec.run.weights)
    assert all(torch.equal(weights[name], value) for name, value in spec.network.state_dict().items())
    kept = {(after, preview.task): preview for after, preview in read_previews(spec.run.previews)}
    assert sorted(kept) == [(0, 0), (1, 0), (1, 1)]
    assert kept[1, 0].predicted["phase"].shape == kept[1, 0].truth["phase"].shape == (16, 16)
    assert all(path.stat().st_mode & 0o077 == 0 for path in spec.run.previews.iterdir())
    effects = read_ledger(spec.run.effects)
    done = [("TaskDone", 18), ("TaskDone", 36), ("Finished", 36), ("TakeCheckpoint", 36)]
    arrived = [("Arrived", 0), ("Arrived", 0), ("FinishStream", 0)]
    assert [(e["kind"], e["step"]) for e in effects] == arrived + done
    assert all(len(e["digest"]) == 64 for e in effects[:2])
    assert all(path.stat().st_mode & 0o077 == 0 for path in spec.run.path.iterdir())


def weights_of(tmp_path, name, scans, **changes):
    spec = small_job(tmp_path / name, **changes)
    alone(spec, *scans[:2], FinishStream())
    return spec.network.state_dict()


def equal(first, second) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_data_and_commands_give_the_same_weights_and_another_seed_others(tmp_path, scans):
    first = weights_of(tmp_path, "a", scans)
    assert equal(first, weights_of(tmp_path, "b", scans))
    assert not equal(first, weights_of(tmp_path, "c", scans, seed=4))


def test_er_without_representatives_is_incremental_bit_for_bit(tmp_path, scans):
    nothing = Rehearsal(representatives=0, candidates=4, capacity=64)
    er = weights_of(tmp_path, "er", scans, strategy=ER(), rehearsal=nothing)
    assert equal(er, weights_of(tmp_path, "inc", scans, strategy=Incremental()))
    assert not equal(er, weights_of(tmp_path, "with", scans, strategy=ER()))


def test_from_scratch_trains_on_everything_so_far_from_the_initial_weights(tmp_path, scans):
    _, timeline, _ = alone(small_job(tmp_path / "run", strategy=FromScratch()), *scans, FinishStream())
    first, second, third = (record.steps for record in timeline.records(TaskBegan))
    assert second == pytest.approx(2 * first, abs=2)
    assert third == pytest.approx(3 * first, abs=3)
    losses = {record.task: record.losses[0] for record in reversed(timeline.records(Steps))}
    # Begun anew, a task starts with the error of an untrained network; trained on, with much less.
    assert losses[2] > 0.8 * losses[0]


def test_commands_take_effect_at_one_step_and_are_written_down(tmp_path, scans):
    spec = small_job(tmp_path / "run", training=Training(batch=16, epochs=2, scaling="none"))
    _, timeline, rank = alone(
        spec, scans[0], Steer(representatives=3, learning_rate=5e-4), Pause(), Resume(), FinishStream()
    )
    applied = timeline.records(Applied)
    kinds = ["Arrived", "Steer", "Pause", "Resume", "FinishStream", "TakeCheckpoint"]
    assert [record.kind for record in applied] == kinds
    assert applied[1].settings == {
        "learning_rate": 5e-4,
        "representatives": 3,
        "distillation": 0,
        "batch": 16,
        "candidates": 4,
        "policy": "quotas",
        "capacity": 64,
        "strategy": "ER",
        "balance": "equal",
    }
    assert applied[0].digest != applied[1].digest == applied[2].digest
    assert drawn(timeline) == (rank.step - 2) * 3
    assert [e["number"] for e in read_ledger(spec.run.effects)] == [1, 2, 3, 4, 5, 0, 0, 0]


def test_a_capacity_below_what_is_drawn_is_refused_and_another_taken(tmp_path, scans):
    spec = small_job(tmp_path / "run")
    commands = (scans[0], Steer(capacity=7), scans[1], Steer(capacity=100, representatives=9), FinishStream())
    _, timeline, _ = alone(spec, *commands)
    in_force = [(record.refused, record.settings["capacity"]) for record in timeline.records(Applied)]
    assert "at most 7 samples" in in_force[1][0]  # fewer than the 8 representatives in force
    assert in_force[1][1] == 64
    assert in_force[3] == ("", 100)
    assert max(record.stored for record in timeline.records(Steps)) > 64


def test_stop_ends_before_the_next_step_and_saves_what_was_learned(tmp_path, scans):
    spec = small_job(tmp_path / "run")
    outcome, _, rank = alone(spec, scans[0], Stop(), FinishStream())
    assert (outcome, rank.step) == ("stopped", 0)
    weights = load_file(spec.run.weights)
    assert all(torch.equal(weights[name], value) for name, value in spec.network.state_dict().items())


def spoilt(scan: Arrived, folder, spoil) -> Arrived:
    path = folder / "spoilt.cxi"
    path.write_bytes(spoil(open(scan.path, "rb").read()))
    return Arrived(name="spoilt", path=str(path))


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def no_scan(_: bytes) -> bytes:
    return b"position,counts\n1,2\n"


@pytest.mark.parametrize(("spoil", "said"), [(truncated, "truncated"), (no_scan, "HDF5")])
def test_a_bad_file_among_good_ones_is_set_aside_with_its_reason_and_the_run_goes_on(
    tmp_path, scans, spoil, said
):
    bad = spoilt(scans[1], tmp_path, spoil)
    spec = small_job(tmp_path / "run")
    outcome, timeline, _ = alone(spec, scans[0], bad, scans[2], FinishStream())
    (aside,) = timeline.records(TaskSetAside)
    assert outcome == "finished"
    assert said in aside.reason
    assert bad.path in aside.reason
    assert [record.name for record in timeline.records(TaskArrived)] == ["scan 0", "scan 2"]
    assert [e["kind"] for e in read_ledger(spec.run.effects)] == [
        "Arrived",
        "SetAside",
        "Arrived",
        "FinishStream",
        "TaskDone",
        "TaskDone",
        "Finished",
        "TakeCheckpoint",
    ]


def test_a_missing_file_is_set_aside(tmp_path, scans):
    gone = Arrived(name="gone", path=str(tmp_path / "gone.cxi"))
    outcome, timeline, _ = alone(small_job(tmp_path / "run"), gone, scans[0], FinishStream())
    (aside,) = timeline.records(TaskSetAside)
    assert outcome == "finished"
    assert "gone.cxi" in aside.reason
    assert "No such file" in aside.reason


def with_nan(scan: Arrived, folder) -> Arrived:
    """The same scan with counts as floats, and one NaN in the last frame."""
    path = folder / "nan.cxi"
    path.write_bytes(open(scan.path, "rb").read())
    with h5py.File(path, "r+") as file:
        for at in ("entry_1/instrument_1/detector_1/data", "entry_1/data_1/data"):
            if at in file:
                counts = file[at][()].astype(np.float32)
                counts[-1, 5, 5] = np.nan
                del file[at]
                file[at] = counts
    return Arrived(name="nan", path=str(path))


def test_nan_in_frames_sets_the_scan_aside_naming_file_dataset_and_frame(tmp_path, scans):
    bad = with_nan(scans[1], tmp_path)
    outcome, timeline, _ = alone(small_job(tmp_path / "run"), scans[0], bad, scans[2], FinishStream())
    (aside,) = timeline.records(TaskSetAside)
    assert outcome == "finished"
    assert bad.path in aside.reason
    assert "/data" in aside.reason
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 2]
    assert timeline.error_matrix("test")[2][1] is None


def dark(scan: Arrived, folder, name: str, frames) -> Arrived:
    """The same scan with no counts in some frames."""
    path = folder / f"{name}.cxi"
    path.write_bytes(open(scan.path, "rb").read())
    with h5py.File(path, "r+") as file:
        counts = file["entry_1/instrument_1/detector_1/data"]
        counts[frames] = np.zeros_like(counts[frames])
    return Arrived(name=name, path=str(path))


def test_frames_without_beam_are_left_out_and_a_scan_of_nothing_else_is_set_aside(tmp_path, scans):
    half = dark(scans[0], tmp_path, "half", slice(0, None, 2))
    nothing = dark(scans[1], tmp_path, "nothing", slice(None))
    outcome, timeline, _ = alone(small_job(tmp_path / "run"), half, nothing, scans[2], FinishStream())
    assert outcome == "finished"
    (aside,) = timeline.records(TaskSetAside)
    assert "no training frame has any counts" in aside.reason
    first, last = (record.steps for record in timeline.records(TaskBegan))
    assert first == pytest.approx(last / 2, abs=2)


def on_this_rank(groups: ProcessGroups, folder: str, wishes: list[str]):
    import queue
    from pathlib import Path

    from rehearsal_kit.record.run_folder import RunFolder

    spec = small_job(Path(folder) / f"unused-{groups.rank}")
    spec = type(spec)(**{**vars(spec), "run": RunFolder(Path(folder))})
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    for wish in wishes if groups.rank == 0 else []:
        mailbox.put(wish)
    timeline = Timeline()
    outcome = Rank(spec, groups, mailbox=mailbox, publish=lambda record, line: timeline.append(record)).run()
    weights = json.dumps([float(p.double().sum()) for p in spec.network.parameters()])
    applied = [(record.number, record.step, record.digest) for record in timeline.records(Applied)]
    return outcome, weights, applied


def test_two_ranks_apply_commands_at_the_same_step_and_end_with_the_same_weights(tmp_path, run, scans):
    from rehearsal_kit.record.commands import Wish

    commands = [*scans[:2], Steer(representatives=2), FinishStream()]
    wishes = [Wish(number, command).to_json() for number, command in enumerate(commands, 1)]
    first, second = on_ranks(2, tmp_path, on_this_rank, str(run.path), wishes)
    assert first == second
    assert first[0] == "finished"
    assert [number for number, _, _ in first[2]] == [1, 2, 3, 4, 0]
