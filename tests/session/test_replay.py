"""Recorded runs once more on real ranks: bit for bit, or a reason why not."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import RankPool, on_ranks
from runkit import (
    ALONE,
    FEATURES,
    TRAINING,
    CutOffError,
    Net,
    carry_out,
    class_tasks,
    job_in,
    job_in_existing,
    same,
    until,
    weights_of,
    written,
)

from rehearsal_kit.base.errors import ReplayError
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
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
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import BranchBegan, Restored, TaskEnded
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.replay import changed_devices, compare_runs, recorded_devices

COMMANDS = 100


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks", tasks=8)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    ranks = RankPool(2, tmp_path_factory.mktemp("two"))
    yield ranks
    ranks.close()


def on(groups, folder, plan, cut, generation, replays):
    """One rank of a run; the folder is made by rank 0."""
    if groups.rank == 0 and not folder.exists():
        job_in(folder)
    groups.gather("")
    spec = replace(job_in_existing(folder), replays=None if replays is None else RunFolder(replays))
    try:
        return carry_out(groups, spec, plan, generation=generation, network=Net(cut=cut))[0]
    except CutOffError:
        return "cut"


def random_commands(tasks, seed):
    """A hundred commands of all kinds at random steps of the first of several branches."""
    dice = random.Random(seed)
    taken, step, plan = 0, 0, []

    def steer():
        return Steer(
            **dice.choice([
                {"learning_rate": dice.choice([0.005, 0.01, 0.03])},
                {"representatives": dice.randrange(0, 9)},
                {"candidates": dice.randrange(0, 9)},
                {"capacity": dice.randrange(20, 60)},
                {"policy": dice.choice(["quotas", "reservoir", "fifo"])},
                {"batch": dice.randrange(4, 12)},
                {"distillation": dice.randrange(1, 6)},
                {"strategy": "ER"},
                {"strategy": "AGEM"},
                {"strategy": "DERpp", "alpha": dice.random(), "beta": dice.random()},
                {"strategy": "DER", "alpha": dice.random()},
                {"strategy": "Incremental"},
            ])
        )  # fmt: skip

    while len(plan) < COMMANDS:
        step += dice.randrange(0, 2)
        kind = dice.choices(["steer", "pause", "checkpoint", "back", "task", "note"], [60, 8, 10, 5, 6, 4])[0]
        if kind == "steer":
            plan.append((step, steer()))
        elif kind == "pause":
            plan += [(step, Pause()), (step, steer()), (step, Resume())]
        elif kind == "checkpoint":
            taken += 1
            plan.append((step, TakeCheckpoint()))
        elif kind == "back" and taken:
            taken += 1  # what the run is then is kept first
            plan.append((step, RollBack(checkpoint=dice.randrange(max(1, taken - 4), taken))))
        elif kind == "task":
            plan.append((step, dice.choice([FinishTask(), Skip(task=5), Reorder(order=(5, 4)), Evaluate()])))
        else:
            plan.append((step, Note(text=f"number {len(plan)}")))
    return [*[(0, task) for task in tasks], *plan, (step, FinishStream())]


def test_a_run_steered_by_a_hundred_random_commands_is_replayed_bit_for_bit(tmp_path, two, tasks):
    plan = random_commands(tasks, seed=4)
    outcome = two(on, tmp_path / "run", plan, None, 1, None)
    assert outcome == ["finished"] * 2
    run = RunFolder(tmp_path / "run")
    effects = read_ledger(run.effects)
    applied = [entry for entry in effects if "refused" not in entry and entry["number"]]
    assert len(applied) > 0.8 * COMMANDS
    timeline = Timeline.load(run.timeline)
    assert len(timeline.records(BranchBegan)) >= 2
    assert len({record.task for record in timeline.records(TaskEnded)}) >= 5
    assert two(on, tmp_path / "again", [], None, 1, run.path) == ["finished"] * 2
    again = RunFolder(tmp_path / "again")
    compared = compare_runs(run, again)
    assert len(compared) >= 20
    assert [each for each in compared if not each.same] == []
    assert read_ledger(again.effects) == effects
    assert Timeline.load(again.timeline).losses() == timeline.losses()


def test_a_run_whose_ranks_died_twice_is_replayed_bit_for_bit(tmp_path, two, tasks):
    plan = [*[(0, task) for task in tasks[:3]], (0, FinishStream()), (7, TakeCheckpoint()), (16, Pause())]
    plan += [(16, Steer(learning_rate=0.005, policy="fifo")), (16, Resume()), (18, TakeCheckpoint())]
    run, again = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "again")
    for generation, cut in enumerate((12, 14, None), 1):  # ranks that are new every time
        (tmp_path / str(generation)).mkdir()
        outcomes = on_ranks(2, tmp_path / str(generation), on, run.path, plan, cut, generation, None)
        assert outcomes == ["finished" if cut is None else "cut"] * 2
    assert len(Timeline.load(run.timeline).records(Restored)) == 2
    assert two(on, again.path, [], None, 1, run.path) == ["finished"] * 2
    assert [each for each in compare_runs(run, again) if not each.same] == []
    assert same(weights_of(job_in_existing(run.path)), weights_of(job_in_existing(again.path)))


def test_a_run_that_never_ended_is_replayed_as_far_as_it_came(tmp_path, tasks):
    plan = [(0, tasks[0]), (3, TakeCheckpoint()), (9, TakeCheckpoint())]
    spec = job_in(tmp_path / "run")
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, plan, cut=10, checkpoints=2)
    again = job_in(tmp_path / "again")
    assert carry_out(ALONE, replace(again, replays=spec.run), [])[0] == "stopped"
    compared = {each.where: each.same for each in compare_runs(spec.run, again.run)}
    assert compared == {"checkpoint 1, branch 0, step 3": True, "checkpoint 2, branch 0, step 9": True}


def recorded(folder, tasks, *more):
    spec = job_in(folder)
    carry_out(ALONE, spec, [*[(0, task) for task in tasks[:2]], *more, (0, FinishStream())])
    return spec


def test_a_replay_refuses_data_that_have_changed(tmp_path):
    tasks = class_tasks(tmp_path / "tasks", tasks=2)
    spec = recorded(tmp_path / "run", tasks)
    class_tasks(tmp_path / "other", tasks=2, each=30)
    shutil.copyfile(tmp_path / "other" / "1.h5", tasks[1].path)
    with pytest.raises(ReplayError, match=r"1\.h5 is not the file that it was: SHA-256"):
        carry_out(ALONE, replace(job_in(tmp_path / "again"), replays=spec.run), [])
    Path(tasks[1].path).unlink()
    with pytest.raises(ReplayError, match=r"1\.h5: there is no such file"):
        carry_out(ALONE, replace(job_in(tmp_path / "gone"), replays=spec.run), [])


def test_a_replay_that_comes_to_other_weights_says_where(tmp_path, tasks):
    spec = recorded(tmp_path / "run", tasks)
    other = replace(job_in(tmp_path / "again"), replays=spec.run, seed=12)
    with pytest.raises(ReplayError, match="code, data or settings are not those of the recorded run"):
        carry_out(ALONE, other, [])


def test_a_replay_tells_the_devices_of_a_run_from_the_one_it_would_have(tmp_path, tasks):
    spec = recorded(tmp_path / "run", tasks)
    assert recorded_devices(spec.run) == [{"device": "cpu"}]
    assert changed_devices(spec.run, {"device": "cpu"}) == []
    card = {"device": "cuda", "GPU": "H100", "NCCL_NVLS_ENABLE": "0"}
    assert changed_devices(spec.run, card) == ["device cpu then, cuda now"]
    # Gone on with on a GPU, and before that by a version that wrote down the device alone.
    old = Joined(rank=0, ranks=1, device="cpu", process=1, time=0.0)
    written(spec.run, [old, replace(old, device="cuda:0", versions=card)])
    assert recorded_devices(spec.run) == [{"device": "cpu"}, {"device": "cpu"}, card]
    assert changed_devices(spec.run, {**card, "GPU": "A100"}) == [
        "device cpu then, cuda now",
        "GPU H100 then, A100 now",
    ]
    assert changed_devices(spec.run, {"device": "cpu"})[:2] == [
        "device cuda then, cpu now",
        "GPU H100 then, none now",
    ]


def test_a_task_set_aside_is_set_aside_again_though_its_file_can_be_read_now(tmp_path, tasks):
    folder = tmp_path / "tasks"
    some = class_tasks(folder, tasks=3)
    content = Path(some[1].path).read_bytes()
    Path(some[1].path).write_bytes(content[: len(content) // 2])
    spec = job_in(tmp_path / "run")
    carry_out(ALONE, spec, [*[(0, task) for task in some], (0, FinishStream())])
    Path(some[1].path).write_bytes(content)
    again = job_in(tmp_path / "again")
    carry_out(ALONE, replace(again, replays=spec.run), [])
    assert [each for each in compare_runs(spec.run, again.run) if not each.same] == []
    assert read_ledger(again.run.effects) == read_ledger(spec.run.effects)


# Another number of ranks ---------------------------------------------------------------------------------


class Looking(Net):
    """Writes down which samples it is trained on: their first number. Cut off once there is a checkpoint."""

    def __init__(self, path, *, cut, checkpoints):
        super().__init__(cut=cut)
        self.path, self.checkpoints = path, checkpoints

    def forward(self, image):
        if self.training:
            if self.steps == self.cut:  # else a part of it might be lost
                until(lambda: find_checkpoints(self.checkpoints))
            with open(self.path, "a") as log:
                log.writelines(f"{number}\n" for number in image[:, 0].int().tolist())
        return super().forward(image)


def looked_at(groups, folder, plan, cut, generation, log):
    spec = replace(
        job_in_existing(folder),
        training=replace(TRAINING, batch=4, epochs=2),
        strategy=Incremental(),
    )
    kept = spec.run.checkpoints
    network = Looking(log / f"{generation}-{groups.rank}", cut=cut, checkpoints=kept)
    try:
        return carry_out(groups, spec, plan, generation=generation, network=network)[0]
    except CutOffError:
        return "cut"


@pytest.mark.parametrize("ranks", [1, 3])
def test_on_another_number_of_ranks_every_sample_is_still_trained_once_an_epoch(tmp_path, ranks):
    numbered = torch.zeros(50, FEATURES)
    numbered[:, 0] = torch.arange(50)
    samples = {"image": numbered, "label": torch.arange(50) % 16}
    task = TensorTask(name="numbered", inputs="image", training=samples, watched=samples, test=samples)
    plan = [(0, write_task(task, tmp_path / "task.h5")), (0, FinishStream()), (3, TakeCheckpoint())]
    log = tmp_path / "log"
    log.mkdir()
    spec = job_in(tmp_path / "run")
    assert on_ranks(2, tmp_path, looked_at, spec.run.path, plan, 5, 1, log) == ["cut"] * 2
    assert 1 in find_checkpoints(spec.run.checkpoints)
    if ranks == 1:
        looked_at(ALONE, spec.run.path, plan, None, 2, log)
    else:
        assert on_ranks(3, log, looked_at, spec.run.path, plan, None, 2, log) == ["finished"] * 3

    def shown(generation):
        return [
            [int(line) for line in path.read_text().split()] for path in sorted(log.glob(f"{generation}-*"))
        ]

    # The checkpoint was taken before step 3: after 3 mini-batches of 4 on each of 2 ranks.
    before = [number for rank in shown(1) for number in rank[:12]]
    assert len(set(before)) == 24
    times = Counter(number for rank in shown(2) for number in rank)
    # What was left of the first epoch, then all of the second one.
    assert times == {number: 1 if number in before else 2 for number in range(50)}
