"""What is refused before a run begins, and that looking changes nothing."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from runkit import ALONE, CutOffError, Net, carry_out, class_tasks, job_in, job_in_existing

from rehearsal_kit.base.errors import RunFolderError, SettingsError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.buffer.memory_limit import available_bytes
from rehearsal_kit.data.tensor_tasks import TensorTask, write_task
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.strategies.choice import require_suited
from rehearsal_kit.learning.strategies.dark import DERpp, DERppACE
from rehearsal_kit.learning.strategies.losses import supervised_loss
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import AGEM, ER, ERACE
from rehearsal_kit.learning.strategies.strategy import Strategy, Term
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.live_settings import LiveSettings
from rehearsal_kit.rank.run_check import dry_run, given_again, known_tasks, require_sound
from rehearsal_kit.rank.run_spec import keep_spec, read_settings
from rehearsal_kit.rank.run_state import RunState
from rehearsal_kit.record.commands import Arrived, FinishStream, Resume, Steer, TakeCheckpoint, Watch
from rehearsal_kit.record.ledger import read_ledger
from rehearsal_kit.record.records import Applied, Noted, Restored, StateChanged, TaskEnded, TaskSetAside
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.session import Session


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks", tasks=3)


# From the arguments alone --------------------------------------------------------------------------------


def frozen():
    return Net().requires_grad_(False)


def meta():
    return torch.nn.Linear(2, 2, device="meta")


def double_complex():
    network = Net()
    network.register_buffer("probe", torch.ones(2, dtype=torch.complex128))
    return network


def half():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).half())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"network": torch.nn.LazyLinear(3)}, "weight of the network LazyLinear has no shape yet.*call the"),
        ({"network": Net}, r"must be a torch.nn.Module; write Net\(\.\.\.\), with brackets"),
        ({"network": frozen()}, "no parameter of the network Net has requires_grad"),
        ({"network": meta()}, "weight of the network Linear is float32, without values"),
        (
            {"network": half()},
            r"1\.weight is float16.*too short to be trained; allowed are float32",
        ),
        (
            {"network": double_complex()},
            "probe of the network Net is complex128, .* which no checkpoint can hold",
        ),
        ({"strategy": ER}, r"must be a Strategy; write ER\(\.\.\.\), with brackets"),
        ({"training": {"batch": 3}}, "training is .* it must be a Training"),
    ],
)
def test_what_no_task_can_make_right_is_refused_before_there_is_a_folder(tmp_path, changes, says):
    values = {"strategy": Incremental(), "network": Net(), **changes}
    with pytest.raises(SettingsError, match=says):
        Session(None, run=tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()


def test_what_can_be_trained_is_not_refused(tmp_path):
    for network in (Net(), Net().bfloat16(), Net().double()):
        require_sound(job_in_existing(tmp_path), network)


def test_whoever_brings_code_learns_at_the_start_what_going_on_elsewhere_will_ask_for():
    assert given_again(ConvNet(), ER()) == ""
    assert re.search(
        r"Net .*not one of ours.*rk\.resume\(run, cluster, network=\.\.\.\)", given_again(Net(), ER())
    )
    said = given_again(ConvNet(), Forgetful())
    assert "the strategy Forgetful is not one of ours" in said
    assert "rk.attach(run, strategy=...)" in said
    assert "network" not in said
    both = given_again(Net(), Forgetful())
    assert "rk.resume(run, cluster, network=..., strategy=...)" in both
    assert "replay --network FILE.py:NAME --strategy FILE.py:NAME" in both


def own_loss(outputs, targets):
    return supervised_loss(outputs, targets)


def test_an_own_loss_is_own_code_and_is_given_again(tmp_path):
    spec = job_in(tmp_path / "run", strategy=ER(loss=own_loss))
    assert "the loss of ER is one of your own" in given_again(ConvNet(), spec.strategy)
    keep_spec(spec, ranks=1)
    with pytest.raises(
        RunFolderError, match=r"with ER, and the loss of ER is one of your own.*strategy=\.\.\."
    ):
        read_settings(spec.run)
    assert read_settings(spec.run, spec.strategy).strategy.loss is own_loss


def test_a_weight_with_which_no_checkpoint_could_be_taken_up_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"alpha is -0\.1"):
        require_sound(job_in(tmp_path / "run", strategy=Negative()), Net())


@dataclass(frozen=True)
class Negative(Strategy):
    alpha: float = -0.1

    def terms(self, batch):
        raise AssertionError


def doubled(outputs, targets):
    return 2 * supervised_loss(outputs, targets)


def test_a_run_of_a_version_that_divided_no_mini_batch_goes_on_so(tmp_path):
    spec = job_in(tmp_path / "run", training=Training(batch=4))
    keep_spec(spec, ranks=1)
    assert read_settings(spec.run).training.scaling == "global"
    plain = json.loads(spec.run.settings.read_text())
    del plain["training"]["scaling"]
    spec.run.settings.write_text(json.dumps(plain))
    assert read_settings(spec.run).training.scaling == "none"


def test_a_run_of_a_version_without_buckets_goes_on_with_one_sum_of_all_gradients(tmp_path):
    spec = job_in(tmp_path / "run", training=Training(batch=4))
    keep_spec(spec, ranks=1)
    assert read_settings(spec.run).training.bucket_mib == Training().bucket_mib
    plain = json.loads(spec.run.settings.read_text())
    del plain["training"]["bucket_mib"]
    spec.run.settings.write_text(json.dumps(plain))
    assert read_settings(spec.run).training.bucket_mib is None


@pytest.mark.parametrize("loss", [supervised_loss, doubled], ids=["ours", "own"])
def test_a_run_of_a_version_without_draws_goes_on_with_two(tmp_path, loss):
    spec = job_in(
        tmp_path / "run", strategy=DERpp(alpha=0.7, draws=2, loss=loss), rehearsal=Rehearsal(distillation=2)
    )
    keep_spec(spec, ranks=1)
    plain = json.loads(spec.run.settings.read_text())
    del plain["draws"]
    spec.run.settings.write_text(json.dumps(plain))
    again = None if loss is supervised_loss else DERpp(alpha=0.7, loss=loss)
    assert read_settings(spec.run, again).strategy == spec.strategy
    plain["draws"] = 1
    spec.run.settings.write_text(json.dumps(plain))
    assert read_settings(spec.run, again).strategy.draws == 1


@pytest.mark.parametrize(
    ("strategy", "changes", "words"),
    [
        (
            DERpp(),
            {"representatives": 0, "distillation": 4},
            "representatives is 0; give some, or, for DERpp",
        ),
        (DERpp(draws=2), {"distillation": 0}, "distillation is 0; give distillation="),
    ],
    ids=["one draw", "two draws"],
)
def test_a_strategy_that_would_compare_nothing_is_refused(strategy, changes, words):
    with pytest.raises(SettingsError, match=words):
        require_suited(strategy, Rehearsal(**changes), Training())


class Classy(ER):
    alpha = 0.5  # no field: nothing that could be steered


def test_what_is_no_field_of_an_own_strategy_is_none_of_its_weights():
    first = LiveSettings.of(job_in_existing(Path("run")))
    first = replace(first, strategy=Classy())
    assert "alpha" not in first.plain
    earlier = {**RunState(first).to_plain(), "in_force": {**first.plain, "alpha": 0.5}}
    assert RunState.from_plain(earlier, first).live_settings == first


# By a dry step -------------------------------------------------------------------------------------------


class Scalar(Net):
    def forward(self, image):
        return {"label": super().forward(image).mean()}


class Broken(Net):
    def forward(self, image):
        if self.training:
            raise ArithmeticError("not in this life")
        return super().forward(image)


class Alone(Net):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(16)

    def forward(self, image):
        return self.norm(super().forward(image))


class Forgetful(Strategy):
    def terms(self, batch):
        raise KeyError("alpha")


def mean_loss(outputs, targets):
    return supervised_loss(outputs, targets).mean()


def loss_of_each_class(outputs, targets):
    return outputs["label"].square()


class MeanTerm(Strategy):
    def terms(self, batch):
        return [Term("new", 1.0, batch.new.loss().mean())]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": ER(loss=mean_loss)}, r"loss of 2 samples came as a tensor \(\); it must be one value"),
        ({"strategy": ER(loss=loss_of_each_class)}, r"2 samples came as a tensor \(2, 16\); .*'none'"),
        ({"strategy": ERACE(loss=mean_loss)}, r"loss of 2 samples came as a tensor \(\); it must be one"),
        ({"strategy": DERppACE(loss=mean_loss)}, r"loss of 2 samples came as a tensor \(\)"),
        ({"strategy": ER(loss=lambda outputs, targets: 0.5)}, "loss of 2 samples came as float"),
        ({"strategy": MeanTerm()}, r"the term 'new' of the loss came as a tensor \(\); it must be one value"),
        ({"network": Scalar()}, "output 'label' is to meet the target of that name, but came as"),
        ({"network": Broken()}, "ArithmeticError: not in this life"),
        ({"network": Net(classes=1)}, "tells 1 classes apart"),
        ({"network": Net().double()}, "RuntimeError: .*dtype"),
        ({"network": Alone(), "training": Training(batch=1)}, "more than 1 value per channel"),
        ({"strategy": Forgetful()}, "KeyError: 'alpha'"),
        ({"rehearsal": Rehearsal(distillation=4, half=("label",))}, "half is for floating fields"),
        ({"rehearsal": Rehearsal(distillation=24, capacity="1 KiB")}, "hold at most"),
    ],
)
def test_a_dry_step_finds_what_cannot_be_trained(tmp_path, tasks, changes, says):
    reason = dry_run(copy.deepcopy(job_in(tmp_path / "run", **changes)), tasks[1:])
    assert re.search(says, reason), reason
    assert tasks[1].name in reason


@pytest.mark.parametrize("strategy", [Incremental(), ER(), AGEM(), None])
def test_a_dry_step_of_what_can_be_trained_says_nothing_and_changes_nothing(tmp_path, tasks, strategy):
    spec = job_in(tmp_path / "run", **({} if strategy is None else {"strategy": strategy}))
    before, random = sorted(spec.run.path.iterdir()), torch.get_rng_state()
    assert dry_run(copy.deepcopy(spec), tasks) == ""
    assert torch.equal(torch.get_rng_state(), random)
    assert sorted(spec.run.path.iterdir()) == before


def test_one_task_that_can_be_trained_is_enough_and_one_that_cannot_be_read_says_nothing(tmp_path, tasks):
    gone = Arrived(name="gone", path=str(tmp_path / "gone.h5"))
    split = {"image": torch.zeros(3, 9), "label": torch.zeros(3, dtype=torch.int64)}
    wide = TensorTask(name="wide", inputs="image", training=split, watched=split, test=split)
    odd = write_task(wide, tmp_path / "wide.h5")
    spec = job_in(tmp_path / "run")
    assert dry_run(copy.deepcopy(spec), [gone]) == ""
    assert "mat1 and mat2" in dry_run(copy.deepcopy(spec), [gone, odd])
    assert dry_run(copy.deepcopy(spec), [odd, tasks[0]]) == ""


def test_tasks_known_are_those_submitted_and_files_of_watched_folders_in_natural_order(tmp_path):
    folder = tmp_path / "scans [new]"
    folder.mkdir()
    for name in ("scan_10.h5", "scan_9.h5"):
        (folder / name).touch()
    first = Arrived(name="mine", path="/data/mine.h5")
    pattern = str(folder / "*.h5")
    found = known_tasks([first, Watch(pattern=pattern, existing=False), Watch(pattern=pattern)])
    assert [task.name for task in found] == ["mine", "scan_9", "scan_10"]


# While it runs -------------------------------------------------------------------------------------------


class Stumbling(Net):
    """Fails in training for vectors that are all zero: so many times, or always."""

    def __init__(self, times=10**9):
        super().__init__()
        self.times = times

    def forward(self, image):
        if self.training and bool((image == 0).all(dim=1).any()) and self.times:
            self.times -= 1
            raise ArithmeticError("a vector of nothing")
        return super().forward(image)


ASIDE = 21
"""The step before which the task of `with_nothing` is set aside; the one before it has 18."""


def with_nothing(tasks, folder):
    """The tasks, and between them one with a vector of nothing among its last samples."""
    image, label = torch.ones(20, 6), torch.arange(20) % 2
    image[7] = 0
    split = {"image": image, "label": label}
    task = TensorTask(
        name="nothing", inputs="image", group="label", training=split, watched=split, test=split
    )
    return [tasks[0], write_task(task, folder / "nothing.h5"), tasks[1]]


def test_an_error_of_one_task_sets_it_aside_and_the_run_goes_on_as_without_it(tmp_path, tasks):
    spec = job_in(tmp_path / "run")
    plan = [(0, command) for command in (*with_nothing(tasks, tmp_path), FinishStream())]
    outcome, timeline = carry_out(ALONE, spec, plan, network=Stumbling())
    assert outcome == "finished"
    (aside,) = timeline.records(TaskSetAside)
    assert (aside.task, aside.name) == (1, "nothing")
    assert "ArithmeticError: a vector of nothing" in aside.reason
    assert "rank 0, " in aside.reason
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 2]


@pytest.mark.parametrize("taken", [None, ASIDE - 1, ASIDE + 2], ids=["none", "before it", "after it"])
def test_a_task_that_was_set_aside_stays_so_where_a_run_goes_on_from_a_checkpoint_or_none(
    tmp_path, tasks, taken
):
    plan = [(0, command) for command in (*with_nothing(tasks, tmp_path), FinishStream())]
    whole = job_in(tmp_path / "whole")
    carry_out(ALONE, whole, plan, network=Stumbling())
    spec, checkpoints = job_in(tmp_path / "run"), [] if taken is None else [(taken, TakeCheckpoint())]
    with pytest.raises(CutOffError):
        carry_out(
            ALONE,
            spec,
            [*plan, *checkpoints],
            network=Stumbling(),
            cut=ASIDE + 6,
            checkpoints=len(checkpoints),
        )
    assert len(find_checkpoints(spec.run.checkpoints)) == len(checkpoints)
    (before,) = asides(spec)
    assert (before["task"], before["step"]) == (1, ASIDE)
    assert carry_out(ALONE, spec, [*plan, *checkpoints], network=Stumbling(), generation=2)[0] == "finished"
    assert asides(spec) == [before]
    timeline = Timeline.load(spec.run.timeline)
    (begun,) = timeline.records(Restored)
    assert begun.step == (taken or 0)
    assert [record.task for record in timeline.records(TaskSetAside)] == [1]
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 2]
    assert spec.run.weights.read_bytes() == whole.run.weights.read_bytes()


def asides(spec):
    return [entry for entry in read_ledger(spec.run.effects) if entry["kind"] == "SetAside"]


def test_an_error_that_does_not_come_again_costs_nothing(tmp_path, tasks):
    weights = []
    for times in (0, 1):
        spec = job_in(tmp_path / f"run-{times}")
        plan = [(0, command) for command in (*with_nothing(tasks, tmp_path), FinishStream())]
        outcome, timeline = carry_out(ALONE, spec, plan, network=Stumbling(times))
        assert outcome == "finished"
        assert not timeline.records(TaskSetAside)
        assert ["a vector of nothing" in note.text for note in timeline.records(Noted)] == [True] * times
        weights.append(spec.run.weights.read_bytes())
    assert weights[0] == weights[1]


def test_numbers_beyond_float16_set_a_task_aside_and_no_run_ends_for_them(tmp_path, tasks):
    image, label = torch.ones(20, 6), torch.arange(20) % 2
    image[3, 2] = 7e4
    split = {"image": image, "label": label}
    task = TensorTask(name="large", inputs="image", group="label", training=split, watched=split, test=split)
    spec = job_in(tmp_path / "run", strategy=ER(), rehearsal=Rehearsal(capacity=64, half=("image",)))
    plan = [tasks[0], write_task(task, tmp_path / "large.h5"), tasks[1], FinishStream()]
    outcome, timeline = carry_out(ALONE, spec, [(0, command) for command in plan])
    assert outcome == "finished"
    (aside,) = timeline.records(TaskSetAside)
    assert "its image reaches 70000, but half stores it as float16" in aside.reason
    assert [record.task for record in timeline.records(TaskEnded)] == [0, 2]


def test_a_capacity_that_no_machine_has_is_refused_before_there_is_a_buffer(tmp_path, tasks):
    spec = job_in(tmp_path / "run")
    plan = [(0, Steer(capacity=2**40)), *[(0, task) for task in tasks], (0, FinishStream())]
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    (steer,) = [record for record in timeline.records(Applied) if record.kind == "Steer"]
    assert "GiB are free there" in steer.refused


def test_a_buffer_without_room_waits_for_a_person(tmp_path, tasks):
    # Where no task is known a row has eight bytes at least: so much has room then, and not with real rows.
    spec = job_in(tmp_path / "run")
    plan = [
        *[(0, command) for command in (Steer(capacity=available_bytes() // 16), *tasks, FinishStream())],
        *[(1, command) for command in (Steer(capacity=40), Resume())],
    ]
    outcome, timeline = carry_out(ALONE, spec, plan)
    assert outcome == "finished"
    (reason,) = [record.reason for record in timeline.records(StateChanged) if record.state == "paused"]
    assert "the rehearsal buffer cannot be made: the buffers on one machine would take" in reason
    assert "steer(capacity=...), resume()" in reason
    assert not any(record.refused for record in timeline.records(Applied))
    assert len(timeline.records(TaskEnded)) == 3
