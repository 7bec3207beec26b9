"""Whole runs on small tasks of tensors: forgetting, steering between strategies, bad input, bad losses."""

from __future__ import annotations

import itertools
import math
import queue
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks, small_job
from safetensors.torch import load_file

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.data.experience import shard
from rehearsal_kit.data.tensor_tasks import TensorTask, open_tensor_task, split_classes, write_task
from rehearsal_kit.learning.strategies.dark import DER, DERpp, DERppACE
from rehearsal_kit.learning.strategies.losses import supervised_loss
from rehearsal_kit.learning.strategies.references import Cumulative, FromScratch, Incremental
from rehearsal_kit.learning.strategies.replay import AGEM, CLSER, ER, ERACE
from rehearsal_kit.learning.strategies.strategy import Strategy, Term
from rehearsal_kit.rank.run_spec import RunSpec
from rehearsal_kit.rank.training_loop import Rank
from rehearsal_kit.record.commands import FinishStream, Pause, Resume, Steer, Stop, Wish
from rehearsal_kit.record.records import (
    Applied,
    Evaluated,
    StateChanged,
    Steps,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline

FEATURES = 8
CLASSES = 4


class Net(torch.nn.Module):
    """Logits of blobs, as a bare tensor."""

    def __init__(self, *, classes=CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, classes)
            )

    def forward(self, image):
        return self.layers(image)


HUGE = 1e30


class Fragile(Net):
    """Makes NaN of numbers whose square overflows, and changes nothing otherwise."""

    def forward(self, image):
        return super().forward(image) + 0 * image.square().sum(dim=1, keepdim=True)


def blobs(each=48, *, classes=CLASSES, seed=0):
    """A Gaussian blob for every class, all far from the origin on one side: vectors and labels."""
    random = torch.Generator().manual_seed(seed)
    centres = 2 + torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(classes).repeat(each)
    return centres[labels] + torch.randn(len(labels), FEATURES, generator=random) / 2, labels


def class_tasks(*, classes=CLASSES, each=48):
    """Two classes in each task."""
    images, labels = blobs(each, classes=classes)
    return split_classes(images, labels, classes_per_task=2, test=blobs(20, classes=classes, seed=1))


@dataclass(frozen=True)
class Ran:
    """What is left of a run."""

    outcome: str
    timeline: Timeline
    spec: RunSpec
    rank: Rank

    @property
    def weights(self):
        return self.spec.network.state_dict()

    def told(self, kind):
        return self.timeline.records(kind)


TRAINING = Training(batch=16, epochs=2, learning_rate=0.03, scaling="none")
ENOUGH = replace(TRAINING, epochs=6)
"""To learn a task, and to forget the one before."""
REHEARSAL = Rehearsal(representatives=16, distillation=8, candidates=8, capacity=48)


def silent(_):
    return []


def run(folder, tasks, *commands, answer=silent, **changes):
    """Train these tasks alone in this process; the rehearsal of a run is REHEARSAL, its network Net().

    commands: take effect before the first step. answer: gives the commands that a record calls for; they
    take effect at the next step. A run that pauses on its own, and gets no answer, is stopped.
    """
    values = {"network": Net(), "training": TRAINING, "rehearsal": REHEARSAL, **changes}
    spec = small_job(Path(folder), **values)
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    timeline, numbers = Timeline(), itertools.count(1)

    def put(some):
        for command in some:
            mailbox.put(Wish(next(numbers), command).to_json())

    def publish(record, line):
        timeline.append(record)
        answers = answer(record)
        if isinstance(record, StateChanged) and record.reason and not answers:
            answers = [Stop()]
        put(answers)

    put([write_task(task, spec.run.new_task()) for task in tasks])
    put([*commands, FinishStream()])
    rank = Rank(spec, ProcessGroups(0, 1), mailbox=mailbox, publish=publish)
    return Ran(rank.run(), timeline, spec, rank)


def at_task(**commands):
    """Commands that take effect after the first step of a task: task_1=[...]."""
    answers = {int(name.removeprefix("task_")): some for name, some in commands.items()}
    return lambda record: answers.get(record.task, []) if isinstance(record, TaskBegan) else []


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(first[name], second[name]) for name in first)


def finite(weights):
    return all(bool(tensor.isfinite().all()) for tensor in weights.values())


def terms_of(ran):
    return {term for record in ran.told(Steps) for term in record.terms}


def distilled_loss(records):
    """The smallest distillation term of those records that tell of distilled samples."""
    return min(record.terms["distillation"] for record in records if record.distilled)


def refusals(ran):
    return [record.refused for record in ran.told(Applied) if record.refused]


# Forgetting ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every strategy once, on the same two tasks."""
    folder = tmp_path_factory.mktemp("runs")
    strategies = {
        **{each.name: each for each in (Incremental(), FromScratch(), Cumulative(), AGEM(), DER())},
        **{f"ER, {balance}": ER(balance=balance) for balance in ("samples", "equal", "tasks")},
        **{f"DERpp, {draws}": DERpp(draws=draws) for draws in (1, 2)},
        **{each.name: each for each in (ERACE(), DERppACE())},
    }
    return {
        name: run(folder / name, class_tasks(), strategy=strategy, training=ENOUGH)
        for name, strategy in strategies.items()
    }


def test_incremental_forgets_the_first_classes_and_rehearsal_does_not(runs):
    after = {name: ran.timeline.error_matrix("test") for name, ran in runs.items()}
    for name, matrix in after.items():
        assert max(matrix[0][0], matrix[1][1]) < 0.1, name  # each has learned the newest task
    forgotten = {name: matrix[1][0] for name, matrix in after.items()}
    assert forgotten["Incremental"] > 0.9
    remembering = {name: error for name, error in forgotten.items() if name not in ("Incremental", "AGEM")}
    assert max(remembering.values()) < 0.3, remembering
    assert forgotten["AGEM"] <= forgotten["Incremental"]


def test_every_strategy_tells_its_own_terms(runs):
    assert {name: terms_of(ran) for name, ran in runs.items()} == {
        "Incremental": {"new"},
        "FromScratch": {"new"},
        "Cumulative": {"new"},
        "ER, samples": {"augmented"},
        "ER, equal": {"new", "replay"},
        "ER, tasks": {"new", "replay"},
        "ERACE": {"new", "replay"},
        "AGEM": {"new", "reference"},
        "DER": {"new", "distillation"},
        "DERpp, 1": {"new", "distillation", "replay"},
        "DERpp, 2": {"new", "distillation", "replay"},
        "DERppACE": {"new", "distillation", "replay"},
    }
    for ran in runs.values():
        for record in ran.told(Steps):
            assert sum(record.terms.values()) == pytest.approx(np.mean(record.losses))


def test_er_without_representatives_is_incremental_bit_for_bit(tmp_path, runs):
    nothing = Rehearsal(representatives=0, candidates=8, capacity=48)
    strategy = ER(balance="samples")
    ran = run(tmp_path / "run", class_tasks(), strategy=strategy, rehearsal=nothing, training=ENOUGH)
    assert same(ran.weights, runs["Incremental"].weights)
    assert not same(ran.weights, runs["ER, samples"].weights)


def test_the_same_run_again_gives_the_same_bits(tmp_path, runs):
    again = run(tmp_path / "run", class_tasks(), strategy=DERpp(draws=2), training=ENOUGH)
    assert same(again.weights, runs["DERpp, 2"].weights)
    assert again.timeline.losses() == runs["DERpp, 2"].timeline.losses()


@pytest.mark.parametrize(
    ("name", "strategy", "drawn"),
    [
        ("DER", DER(alpha=0.0), 8),
        ("DERpp, 2", DERpp(alpha=0.0, draws=2), 8),
        ("DERpp, 1", DERpp(alpha=0.0, draws=1), 16),
        ("DERppACE", DERppACE(alpha=0.0), 16),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_distillation_is_there_and_changes_what_is_learned(tmp_path, runs, name, strategy, drawn):
    ran = runs[name]
    assert distilled_loss(ran.told(Steps)) > 0
    # At every step but the first two: the first is not augmented, at the second nothing is stored.
    assert sum(record.distilled for record in ran.told(Steps)) == (ran.rank.step - 2) * drawn
    without = run(tmp_path / "run", class_tasks(), strategy=strategy, training=ENOUGH)
    assert {record.terms["distillation"] for record in without.told(Steps)} == {0.0}
    assert not same(without.weights, ran.weights)


@dataclass(frozen=True)
class Squares(Strategy):
    """One of somebody's own: squares of the losses, new and replayed."""

    replays = True

    def terms(self, batch):
        new, replayed = batch.new, batch.replayed
        return [
            Term("new", 1.0, supervised_loss(new.outputs, new.targets) ** 2),
            Term("again", 1.0, supervised_loss(replayed.outputs, replayed.targets) ** 2),
        ]


def test_a_strategy_of_somebodys_own_trains_and_rehearses(tmp_path, runs):
    ran = run(tmp_path / "run", class_tasks(), strategy=Squares(), training=ENOUGH)
    assert ran.outcome == "finished"
    assert terms_of(ran) == {"new", "again"}
    forgotten, all_forgotten = (
        some.timeline.error_matrix("test")[1][0] for some in (ran, runs["Incremental"])
    )
    assert forgotten < all_forgotten - 0.2
    assert {record.settings["strategy"] for record in ran.told(Applied)} == {"Squares"}
    assert not same(ran.weights, runs["ER, samples"].weights)


# Steering ------------------------------------------------------------------------------------------------


DARK = Steer(strategy="DERpp", distillation=8, alpha=0.4, beta=0.6, draws=2)


@pytest.mark.parametrize(
    ("strategy", "rehearsal", "command", "words"),
    [
        (ER(), REHEARSAL, DARK, r"stores no outputs, which DERpp needs; .*Rehearsal\(outputs=True\)"),
        (
            ER(),
            replace(REHEARSAL, distillation=0, outputs=True),
            Steer(strategy="DER"),
            r"distillation is 0; give distillation=",
        ),
        (
            Incremental(),
            REHEARSAL,
            Steer(strategy="ER"),
            "keeps no buffer, so it cannot be switched to ER; start",
        ),
        (ER(), REHEARSAL, Steer(alpha=2.0), "ER has no alpha; give the strategy as well"),
        (ER(), REHEARSAL, Steer(strategy="EWC"), "known are Incremental"),
        (
            ER(),
            REHEARSAL,
            Steer(strategy="CLSER"),
            r"plastic_average None; begin the run with Training\(aver",
        ),
    ],
    ids=["no outputs", "no draw", "no buffer", "no such weight", "no such strategy", "no averages"],
)
def test_a_switch_that_cannot_be_is_refused_with_the_fix_and_changes_nothing(
    tmp_path, strategy, rehearsal, command, words
):
    values = {"strategy": strategy, "rehearsal": rehearsal}
    steered = run(tmp_path / "steered", class_tasks(), answer=at_task(task_1=[command]), **values)
    (refused,) = refusals(steered)
    assert re.search(words, refused), refused
    assert steered.told(Applied)[-1].settings["strategy"] == strategy.name
    assert same(steered.weights, run(tmp_path / "not", class_tasks(), **values).weights)


STORING = replace(REHEARSAL, distillation=0, outputs=True)
TWO_AVERAGES = replace(TRAINING, average=0.9, plastic_average=0.5)


def test_a_run_that_stores_outputs_is_switched_from_er_to_der_plus_plus(tmp_path):
    def steered(name, **answers):
        return run(
            tmp_path / name, class_tasks(), strategy=ER(), rehearsal=STORING, answer=at_task(**answers)
        )

    ran, never = steered("a", task_1=[DARK]), steered("never")
    assert not refusals(ran)
    assert ran.told(Applied)[-1].settings == {
        "learning_rate": 0.03,
        "representatives": 16,
        "distillation": 8,
        "batch": 16,
        "candidates": 8,
        "policy": "quotas",
        "capacity": 48,
        "strategy": "DERpp",
        "alpha": 0.4,
        "beta": 0.6,
        "draws": 2,
    }
    before, after = ([record for record in ran.told(Steps) if record.task == task] for task in (0, 1))
    assert all(set(record.terms) == {"new", "replay"} and not record.distilled for record in before)
    assert distilled_loss(after) > 0
    # Drawn from the second step of the task on, so compared from the third on.
    began = ran.told(TaskBegan)[1]
    assert sum(record.distilled for record in after) == 8 * (began.steps - 2)
    assert not same(ran.weights, never.weights)
    assert same(ran.weights, steered("again", task_1=[DARK]).weights)
    plain = run(tmp_path / "plain", class_tasks(), strategy=ER())
    assert same(never.weights, plain.weights)  # what is stored beside the samples changes no draw


def test_every_record_of_steps_has_the_terms_of_one_strategy(tmp_path):
    """Else the mean of a term is over steps that did not have it."""
    ran = run(
        tmp_path / "run", class_tasks(), strategy=ER(), rehearsal=STORING, answer=at_task(task_1=[DARK])
    )
    kinds = {frozenset(record.terms) for record in ran.told(Steps)}
    assert kinds == {frozenset({"new", "replay"}), frozenset({"new", "distillation", "replay"})}


def test_what_was_drawn_for_the_strategy_before_is_not_counted_as_trained_on(tmp_path):
    answer = at_task(task_1=[Steer(strategy="Incremental")])
    ran = run(tmp_path / "run", class_tasks(), strategy=ER(), answer=answer)
    first, second = (
        sum(record.representatives for record in ran.told(Steps) if record.task == task) for task in (0, 1)
    )
    assert first == 16 * (ran.told(TaskBegan)[0].steps - 2)
    assert second == 16  # of the one step before the switch


def test_there_and_back_again(tmp_path):
    back = Steer(strategy="DERpp", alpha=0.4, draws=2)
    answers = {"task_1": [Steer(strategy="Incremental")], "task_2": [back]}
    tasks = class_tasks(classes=6)
    values = {"strategy": DERpp(alpha=0.4, draws=2), "network": Net(classes=6)}
    ran = run(tmp_path / "run", tasks, answer=at_task(**answers), **values)
    assert not refusals(ran)
    steered = [record.settings["strategy"] for record in ran.told(Applied) if record.kind == "Steer"]
    assert steered == ["Incremental", "DERpp"]
    steps = [record.steps for record in ran.told(TaskBegan)]
    distilled = [
        sum(record.distilled for record in ran.told(Steps) if record.task == task) for task in range(3)
    ]
    # One step of a task is taken before its commands come; what they ask to be drawn comes at the next.
    assert distilled == [8 * (steps[0] - 2), 8, 8 * (steps[2] - 2)]
    again = run(tmp_path / "again", tasks, answer=at_task(**answers), **values | {"network": Net(classes=6)})
    assert same(ran.weights, again.weights)


def test_a_run_that_keeps_two_averages_is_switched_to_cls_er_and_back(tmp_path):
    answers = {"task_1": [Steer(strategy="CLSER", consistency=0.5)], "task_2": [Steer(strategy="ER")]}
    values = {"strategy": ER(), "network": Net(classes=6), "training": TWO_AVERAGES}
    ran = run(tmp_path / "run", class_tasks(classes=6), answer=at_task(**answers), **values)
    assert not refusals(ran)
    told = [(record.task, record.terms) for record in ran.told(Steps)]
    kinds = [{task for task, terms in told if ("consistency" in terms) is held} for held in (True, False)]
    assert kinds == [{1, 2}, {0, 1, 2}]  # one step of a task is taken before its commands come
    assert min(terms["consistency"] for task, terms in told if "consistency" in terms) > 0


@pytest.mark.parametrize("strategy", [ERACE(), CLSER()], ids=lambda strategy: strategy.name)
def test_a_strategy_for_classes_pauses_a_stream_without_and_another_learns_all_of_it(tmp_path, strategy):
    """No task is at fault: they are not set aside for it, one after the other."""

    def answer(record):
        paused = isinstance(record, StateChanged) and record.reason
        return [Steer(strategy="DERpp", draws=1), Resume()] if paused else []

    ran = run(
        tmp_path / "run",
        [value_task("one"), value_task("two", seed=1)],
        network=Deep(layers=1),
        strategy=strategy,
        training=TWO_AVERAGES,
        rehearsal=STORING,
        answer=answer,
    )
    (reason,) = [record.reason for record in ran.told(StateChanged) if record.reason]
    assert "no target of this stream is a class" in reason
    assert ran.outcome == "finished"
    assert not ran.told(TaskSetAside)
    assert [record.task for record in ran.told(TaskEnded)] == [0, 1]


def test_a_bad_first_task_does_not_take_steering_away(tmp_path):
    """Nothing is stored yet when the first task is set aside: no reason to refuse a learning rate."""
    wide = torch.zeros(30, FEATURES + 1), torch.arange(30) % 2
    (bad,) = split_classes(*wide, classes_per_task=2, test=wide)
    steer = Steer(learning_rate=0.02)
    ran = run(
        tmp_path / "run",
        [bad, *class_tasks()],
        answer=lambda record: [steer] if isinstance(record, TaskSetAside) else [],
    )
    assert len(ran.told(TaskSetAside)) == 1
    assert refusals(ran) == []
    assert ran.told(Applied)[-1].settings["learning_rate"] == 0.02


# What is stored ------------------------------------------------------------------------------------------


def test_outputs_stored_as_float16_take_less_and_teach_nearly_the_same(tmp_path):
    half = replace(REHEARSAL, half=("outputs",))
    whole = run(tmp_path / "whole", class_tasks(), strategy=DERpp())
    halved = run(tmp_path / "half", class_tasks(), strategy=DERpp(), rehearsal=half)
    assert not same(whole.weights, halved.weights)
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(halved.weights[name], tensor, rtol=0.01, atol=0.01)
    # 32 bytes of image, 8 each of label, identity and version, and 4 logits of 4 or 2 bytes.
    for rehearsal, row in ((REHEARSAL, 72), (half, 64)):
        some = replace(rehearsal, capacity=f"{72 * 64} B")
        ran = run(tmp_path / str(row), class_tasks(), strategy=DERpp(), rehearsal=some)
        assert max(record.stored for record in ran.told(Steps)) == 72 * 64 // row


def test_stored_outputs_grow_old_and_their_age_is_told(tmp_path, runs):
    plain = [record.outputs_age for record in runs["ER, samples"].told(Steps)]
    assert set(plain) == {None}
    once = replace(REHEARSAL, candidates=0)  # once full nothing is renewed
    ran = run(
        tmp_path / "run", class_tasks(classes=6), strategy=DER(), rehearsal=once, network=Net(classes=6)
    )
    steps = [record for record in ran.told(Steps) if record.distilled]
    assert all(2 <= record.outputs_age < record.first + len(record.losses) for record in steps)
    ages = [record.outputs_age for record in steps]
    assert ages == sorted(ages)
    # All that is stored was made in the first three steps: from then on a step more is a step older.
    last = [record for record in steps if record.task == 2]
    middle = sum(record.first + (len(record.losses) - 1) / 2 for record in last) / len(last)
    assert sum(record.outputs_age for record in last) / len(last) == pytest.approx(middle - 1, abs=0.7)


# Bad input -----------------------------------------------------------------------------------------------


def changed(task, **changes):
    """The task with other splits: a function of its samples for each."""
    return replace(
        task,
        name=f"bad {task.name}",
        **{split: change(dict(getattr(task, split))) for split, change in changes.items()},
    )


def everywhere(change):
    return dict.fromkeys(("training", "watched", "test"), change)


def with_field(name, value, *, at=None):
    """A change of samples: one of their fields, or one value of it."""

    def change(fields):
        tensor = fields[name].clone()
        if at is None:
            return fields | {name: value(tensor)}
        tensor[at] = value
        return fields | {name: tensor}

    return change


BAD = {
    "another shape": (everywhere(with_field("image", lambda t: t[:, :6])), r"image \(6,\) float32"),
    "another dtype": (everywhere(with_field("image", lambda t: t.double())), r"image \(8,\) float64"),
    "a class too many": ({"training": with_field("label", 7, at=5)}, "reaches from 0 to 7.* 0 to 3"),
    "a class too many in test": ({"test": with_field("label", 4, at=0)}, "reaches from 0 to 4.* 0 to 3"),
    "a negative class": ({"watched": with_field("label", -1, at=0)}, "reaches from -1 to"),
    "fields renamed": (
        everywhere(lambda f: {"image": f["image"], "digit": f["label"]}),
        r"digit \(\) int64.*first task.*label",
    ),
    "NaN": ({"training": with_field("image", math.nan, at=(3, 2))}, "1 numbers of its field image are NaN"),
    "infinite in test": ({"test": with_field("image", -math.inf, at=(0, 0))}, "field image are NaN or inf"),
    "fields more": (
        everywhere(lambda f: f | {"weight": torch.ones(len(f["image"]))}),
        r"weight \(\) float32",
    ),
}


def test_tasks_that_do_not_fit_are_set_aside_with_a_reason_and_the_run_goes_on(tmp_path):
    first, second = class_tasks()
    plain = replace(first, group=None)
    bad = [replace(changed(plain, **change), name=name) for name, (change, _) in BAD.items()]
    ran = run(tmp_path / "run", [first, *bad, second], training=ENOUGH)
    assert ran.outcome == "finished"
    assert [record.task for record in ran.told(TaskEnded)] == [0, 1 + len(BAD)]
    asides = ran.told(TaskSetAside)
    assert [record.name for record in asides] == list(BAD)
    steps = ran.told(TaskEnded)[0].step
    for record, (_, words) in zip(asides, BAD.values(), strict=True):
        assert re.search(words, record.reason), record.reason
        assert record.step == steps
        assert f"(rank 0, before step {steps})" in record.reason
    assert max(ran.timeline.error_matrix("test")[-1][j] for j in (0, 1 + len(BAD))) < 0.3
    assert Timeline.load(ran.spec.run.timeline).records() == ran.timeline.records()


def test_files_that_are_no_tasks_are_set_aside_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    first, second = class_tasks()
    arrivals = [write_task(second, folder / f"{name}.h5") for name in ("truncated", "empty", "text", "gone")]
    whole = (folder / "truncated.h5").read_bytes()
    (folder / "truncated.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.h5").write_bytes(b"")
    (folder / "text.h5").write_text("not a task")
    (folder / "gone.h5").unlink()
    arrivals = [replace(arrival, name=Path(arrival.path).stem) for arrival in arrivals]
    ran = run(tmp_path / "run", [first], *arrivals, write_task(second, folder / "good.h5"))
    assert ran.outcome == "finished"
    assert [record.task for record in ran.told(TaskEnded)] == [0, 1]
    for record, arrival in zip(ran.told(TaskSetAside), arrivals, strict=True):
        assert (record.name, record.path) == (arrival.name, arrival.path)
        assert arrival.path in record.reason


@pytest.mark.parametrize("name", ["truncated", "empty", "text", "gone"])
def test_the_reason_a_file_is_set_aside_names_rank_and_step(tmp_path, name):
    (task, _), path = class_tasks(), tmp_path / f"{name}.h5"
    arrival = write_task(task, path)
    content = {"truncated": path.read_bytes()[:3000], "empty": b"", "text": b"not a task"}
    path.unlink() if name == "gone" else path.write_bytes(content[name])
    (record,) = run(tmp_path / "run", [], arrival).told(TaskSetAside)
    assert "(rank 0, before step 0)" in record.reason


@pytest.mark.parametrize("split", ["training", "watched", "test"])
def test_an_empty_task_cannot_be_made(split):
    (task, _) = class_tasks()
    with pytest.raises(SettingsError, match=rf"'bad classes 0, 1': {split} has .*\[0\] samples"):
        changed(task, **{split: lambda fields: {name: tensor[:0] for name, tensor in fields.items()}})


# Tasks of targets that are not classes -------------------------------------------------------------------


class Deep(torch.nn.Module):
    """Linear layers one after the other: with large steps its outputs overflow soon."""

    def __init__(self, *, layers=4, norm=False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            hidden = [torch.nn.Linear(32, 32) for _ in range(layers)]
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(FEATURES, 32), *hidden, torch.nn.Linear(32, FEATURES)
            )

    def forward(self, x):
        return {"y": self.layers(x)}


def value_task(name="values", *, count=64, seed=0):
    """Vectors to be given back turned round."""
    random = torch.Generator().manual_seed(seed)

    def part(size):
        x = torch.randn(size, FEATURES, generator=random)
        return {"x": x, "y": x.flip(1)}

    return TensorTask(name=name, inputs="x", training=part(count), watched=part(6), test=part(20))


# Bad losses ----------------------------------------------------------------------------------------------


def test_a_loss_of_nan_pauses_the_run_where_the_task_began(tmp_path):
    first, second = class_tasks()
    bad = changed(second, training=with_field("image", HUGE, at=(3, 2)))
    seen = {}

    def answer(record):
        if isinstance(record, TaskBegan):
            seen[record.task] = {n: t.clone() for n, t in network.state_dict().items()}
        elif isinstance(record, StateChanged) and record.state == "paused":
            seen["paused"] = {n: t.clone() for n, t in network.state_dict().items()}
        return []

    network = Fragile()
    ran = run(tmp_path / "run", [first, bad], network=network, answer=answer)
    (paused,) = [record for record in ran.told(StateChanged) if record.state == "paused"]
    assert f"task 1 ({bad.name}), step {paused.step - 1}, rank 0: the loss became NaN" in paused.reason
    assert "lower the learning rate (0.03) and resume, or stop" in paused.reason
    assert same(seen["paused"], seen[1])
    assert finite(seen["paused"])
    assert not same(seen[0], seen[1])
    assert ran.outcome == "stopped"
    assert same(load_file(ran.spec.run.weights), seen[1])
    assert [record.task for record in ran.told(TaskEnded)] == [0]
    assert all(math.isfinite(loss) for loss in ran.timeline.losses()[1])


def mended(rate):
    """Answers the first pause with a lower learning rate."""
    pauses = itertools.count()

    def answer(record):
        if isinstance(record, StateChanged) and record.reason and not next(pauses):
            return [Steer(learning_rate=rate), Resume()]
        return []

    return answer


LARGE = Training(batch=16, epochs=3, learning_rate=10.0, optimizer="sgd", scaling="none")


@pytest.mark.parametrize(
    ("strategy", "half"),
    [(Incremental(), ()), (ER(), ()), (AGEM(), ()), (DER(), ()), (DERpp(), ()), (DERpp(), ("outputs",))],
    ids=["Incremental", "ER", "AGEM", "DER", "DERpp", "DERpp with float16"],
)
def test_a_loss_that_overflows_pauses_and_a_lower_learning_rate_goes_on(tmp_path, strategy, half):
    ran = run(
        tmp_path / "run",
        [value_task("one"), value_task("two", seed=1)],
        network=Deep(layers=1),
        strategy=strategy,
        training=LARGE,
        rehearsal=replace(REHEARSAL, half=half),
        answer=mended(1e-3),
    )
    reasons = [record.reason for record in ran.told(StateChanged) if record.reason]
    assert "task 0 (one), step" in reasons[0]
    assert len(reasons) == 1, reasons
    assert ran.outcome == "finished"
    assert [record.task for record in ran.told(TaskEnded)] == [0, 1]
    # The task was begun anew: all its steps were taken after the one that was not.
    first, second = ran.told(TaskBegan)
    bad = int(re.search(r"step (\d+)", reasons[0])[1])
    assert second.step == bad + 1 + first.steps
    assert finite(ran.weights)
    assert ran.timeline.losses()[1][-1] < 2


def test_a_run_stopped_after_its_loss_overflowed_leaves_finite_weights(tmp_path):
    ran = run(tmp_path / "run", [value_task()], network=Deep(), training=LARGE)
    initial = run(tmp_path / "none", [], network=Deep(), training=LARGE)
    assert ran.outcome == "stopped"
    assert finite(load_file(ran.spec.run.weights))
    assert same(load_file(ran.spec.run.weights), load_file(initial.spec.run.weights))


def test_a_pause_that_a_person_asked_for_gives_no_reason(tmp_path):
    ran = run(tmp_path / "run", class_tasks(), Pause(), answer=lambda r: [Resume()] if is_pause(r) else [])
    assert [record.reason for record in ran.told(StateChanged) if record.state == "paused"] == [""]
    assert ran.outcome == "finished"


def is_pause(record):
    return isinstance(record, StateChanged) and record.state == "paused"


# Scores that are not finite ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["training", "watched", "test"])
@pytest.mark.parametrize("field", ["x", "y"])
def test_tasks_that_hold_nan_anywhere_are_set_aside(tmp_path, split, field):
    good, bad = value_task("good"), value_task("bad", seed=1)
    bad = changed(bad, **{split: with_field(field, math.nan, at=(0, 0))})
    ran = run(tmp_path / "run", [good, bad, value_task("last", seed=2)], network=Deep())
    assert ran.outcome == "finished"
    assert [record.task for record in ran.told(TaskEnded)] == [0, 2]
    (aside,) = ran.told(TaskSetAside)
    assert f"1 numbers of its field {field} are NaN or infinite" in aside.reason


class Residual(torch.nn.Module):
    """Gives back what it gets before it has learned anything, as residual networks often do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)
        for parameter in self.layer.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x):
        return {"y": x + self.layer(x)}


def test_images_predicted_without_any_error_do_not_end_the_run(tmp_path):
    def part(size):
        x = torch.rand(size, 1, 8, 8)
        return {"x": x, "y": x.clone()}

    task = TensorTask(name="same", inputs="x", training=part(16), watched=part(2), test=part(4))
    ran = run(tmp_path / "run", [task], network=Residual())
    assert ran.outcome == "finished"
    untrained = ran.told(Evaluated)[0]
    assert untrained.errors == {"y": 0.0}


def test_a_last_step_that_spoils_the_network_can_be_mended(tmp_path):
    """All losses of the task are finite; what the network makes of anything after its last step is not."""
    ran = run(
        tmp_path / "run",
        [value_task(count=16)],
        network=Deep(layers=40),
        training=Training(batch=16, epochs=1, learning_rate=10.0, scaling="none"),
        strategy=Incremental(),
        answer=mended(1e-3),
    )
    assert ran.outcome == "finished"


# Networks and tasks as people bring them -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_width(tmp_path, dtype):
    narrow = [changed(t, **everywhere(with_field("label", lambda v: v.to(dtype)))) for t in class_tasks()]
    ran = run(tmp_path / "run", narrow)
    assert ran.outcome == "finished"
    assert same(ran.weights, run(tmp_path / "wide", class_tasks()).weights)


class OneNumber(Deep):
    def forward(self, x):
        return {"y": super().forward(x)["y"].mean(dim=1)}


def test_a_target_may_be_one_number_a_sample(tmp_path):
    task = changed(value_task(), **everywhere(with_field("y", lambda y: y.mean(dim=1))))
    ran = run(tmp_path / "run", [task], network=OneNumber(), strategy=DERpp())
    assert ran.outcome == "finished"


class Tied(torch.nn.Module):
    """Encoder and decoder share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(FEATURES, FEATURES), torch.nn.Linear(FEATURES, FEATURES)
        self.last.weight = self.first.weight

    def forward(self, x):
        return {"y": self.last(self.first(x).tanh())}


def test_a_network_may_share_weights_between_layers(tmp_path):
    assert run(tmp_path / "run", [value_task()], network=Tied()).outcome == "finished"


class Masked(Net):
    """Classes that cannot be are masked out before the softmax, as is done everywhere."""

    def forward(self, image):
        return super().forward(image).masked_fill(torch.arange(CLASSES) >= 2, -math.inf)


def test_logits_may_be_masked(tmp_path):
    (task, _) = class_tasks()
    assert run(tmp_path / "run", [task], network=Masked(), strategy=ER()).outcome == "finished"


def test_samples_whose_outputs_cannot_be_stored_take_no_part_in_distillation(tmp_path):
    (task, _) = class_tasks()
    ran = run(tmp_path / "run", [task], network=Masked(), strategy=DERpp())
    assert ran.outcome == "finished"
    steps = ran.told(Steps)
    assert sum(record.representatives for record in steps) > 0
    assert sum(record.distilled for record in steps) == 0


class Named(Net):
    """A dictionary, so that there may be fields which no output meets."""

    def forward(self, image):
        return {"label": super().forward(image)}


def test_nan_in_a_field_that_nobody_trains_on_sets_the_task_aside_too(tmp_path):
    def more(value):
        return lambda fields: fields | {"weight": torch.full((len(fields["image"]),), value)}

    first, second = class_tasks()
    tasks = [changed(first, **everywhere(more(1.0))), changed(second, **everywhere(more(math.nan)))]
    ran = run(tmp_path / "run", tasks, network=Named())
    assert ran.outcome == "finished"
    assert [record.task for record in ran.told(TaskEnded)] == [0]
    (aside,) = ran.told(TaskSetAside)
    assert "field weight" in aside.reason


# Many tasks ----------------------------------------------------------------------------------------------


def test_evaluation_of_many_tasks_is_bounded_and_complete_where_it_counts(tmp_path):
    tasks, evaluated = 12, 3
    images, labels = blobs(8)
    parts = split_classes(images, labels, classes_per_task=4, test=blobs(4, seed=1)) * tasks
    training = Training(batch=16, epochs=1, learning_rate=0.01, evaluated=evaluated, scaling="none")
    ran = run(tmp_path / "run", [replace(p, name=str(n)) for n, p in enumerate(parts)], training=training)
    told = ran.told(Evaluated)
    assert len(told) == len({(record.after, record.task, record.split) for record in told})
    final = ran.told(TaskEnded)[-1].step
    until_the_end = told[: -2 * (tasks - evaluated - 1)]
    assert {record.step for record in told[len(until_the_end) :]} == {final}
    for task in range(tasks):
        during = [record for record in until_the_end if record.after == task]
        # The newest and `evaluated` earlier ones, in two splits, and the next task before it is trained.
        assert len(during) <= 2 * (evaluated + 1) + 1
    for split in ("watched", "test"):
        matrix = ran.timeline.error_matrix(split)
        assert None not in matrix[-1]
        assert None not in [row[0] for row in matrix]
        assert None not in [matrix[task][task] for task in range(tasks)]
        # In turns: none waits longer than the others take.
        for task in range(1, tasks):
            seen = [after for after in range(task, tasks) if matrix[after][task] is not None]
            assert max(np.diff(seen), default=1) <= math.ceil((tasks - 2) / (evaluated - 1)) + 1
    before, untrained = ran.timeline.untaught()
    assert len(before) == len(untrained) == tasks
    assert None not in before + untrained
    assert before[0] == untrained[0]


# Two ranks -----------------------------------------------------------------------------------------------


def plain(weights):
    return {name: tensor.numpy().copy() for name, tensor in weights.items()}


def on_this_rank(groups, folder, arrivals):
    """Four tasks; DER++ from the third on, whose first step is still one of ER."""
    network = Fragile()
    spec = small_job(
        Path(folder) / f"unused-{groups.rank}",
        network=network,
        training=TRAINING,
        rehearsal=replace(REHEARSAL, outputs=True),
    )
    spec = replace(spec, run=RunFolder(Path(folder)))
    mailbox: queue.SimpleQueue[str] = queue.SimpleQueue()
    timeline, numbers, began = Timeline(), itertools.count(1), {}

    def put(command):
        mailbox.put(Wish(next(numbers), command).to_json())

    def publish(record, line):
        timeline.append(record)
        if isinstance(record, TaskBegan):
            began[record.task] = plain(network.state_dict())
            if record.task == 2:
                put(DARK)
        elif isinstance(record, StateChanged) and record.reason:
            put(Stop())

    for command in [*arrivals, FinishStream()] if groups.rank == 0 else []:
        put(command)
    outcome = Rank(spec, groups, mailbox=mailbox, publish=publish).run()
    return outcome, plain(network.state_dict()), began, timeline.records()


def test_two_ranks_agree_about_strategies_bad_tasks_and_bad_losses(tmp_path):
    run_folder = RunFolder(tmp_path / "run").create()
    first, second = class_tasks()
    tasks = [first, first, second, second]
    arrivals = [write_task(task, run_folder.new_task()) for task in tasks]
    on_rank = [
        shard(open_tensor_task(arrival), seed=3, task=number, rank=number % 2, ranks=2)
        for number, arrival in enumerate(arrivals)
    ]
    # The second task is bad for rank 1 alone, so is the fourth: rank 0 never has the samples in question.
    tasks[1] = changed(first, training=with_field("label", 9, at=int(on_rank[1][0])))
    tasks[3] = changed(second, training=with_field("image", HUGE, at=(int(on_rank[3][0]), 0)))
    arrivals = [write_task(task, run_folder.new_task()) for task in tasks]
    (one, its_weights, began, told), (other, others_weights, _, _) = on_ranks(
        2, tmp_path, on_this_rank, str(run_folder.path), arrivals
    )
    assert one == other == "stopped"
    assert all(np.array_equal(value, others_weights[name]) for name, value in its_weights.items())
    assert all(np.array_equal(value, began[3][name]) for name, value in its_weights.items())
    assert all(np.isfinite(value).all() for value in its_weights.values())
    timeline = Timeline(told)
    (aside,) = timeline.records(TaskSetAside)
    assert aside.name == tasks[1].name
    assert "reaches from 0 to 9" in aside.reason
    assert f"(rank 1, before step {aside.step})" in aside.reason
    (paused,) = [record for record in timeline.records(StateChanged) if record.reason]
    assert f"task 3 ({tasks[3].name}), step {paused.step - 1}, rank 1: the loss became NaN" in paused.reason
    dark = [record for record in timeline.records(Steps) if record.task == 2]
    assert sum(record.distilled for record in dark) == 8 * (timeline.records(TaskBegan)[1].steps - 2)
    assert distilled_loss(dark) > 0
    matrix = timeline.error_matrix("test")
    assert [[score is not None for score in row] for row in matrix] == [
        [True, False, False],
        [False, False, False],
        [True, False, True],
    ]
    assert timeline.records(TaskEnded)[-1].task == 2
