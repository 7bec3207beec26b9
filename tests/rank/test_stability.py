"""The stability gap: what is looked at, when it is told, and that looking changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_runs import ENOUGH, Net, at_task, class_tasks, run, same

from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.data.training_shard import TrainingShard
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.stability import WINDOW, Stability
from rehearsal_kit.record.commands import FinishTask
from rehearsal_kit.record.records import Evaluated, StabilityLooked, TaskBegan, TaskEnded
from rehearsal_kit.reports.comparison import Outcome

LOOKING = replace(ENOUGH, stability_every=3)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("looked")
    values = {"training": LOOKING, "strategy": Incremental()}
    return run(folder / "run", class_tasks(classes=6), network=Net(classes=6), **values)


def test_each_task_after_the_first_is_told_of_once_with_the_error_before_it(ran):
    looked = ran.told(StabilityLooked)
    assert [record.task for record in looked] == [1, 2]
    # The watched samples of a task are fewer than are looked at, so that both are of the same.
    watched = {
        (record.after, record.task): record.error
        for record in ran.told(Evaluated)
        if record.split == "watched"
    }
    assert looked[0].before == pytest.approx(watched[0, 0])
    assert looked[1].before == pytest.approx((watched[1, 0] + watched[1, 1]) / 2)
    for record, began in zip(looked, ran.told(TaskBegan)[1:], strict=True):
        assert 0 < record.at <= min(WINDOW, began.steps)
        assert record.at % 3 == 0
        assert record.worst > record.before
        assert record.gap == (record.worst / record.before if record.before else None)


def test_looking_changes_nothing_and_by_default_nobody_looks(ran, tmp_path):
    values = {"training": ENOUGH, "strategy": Incremental()}
    without = run(tmp_path / "run", class_tasks(classes=6), network=Net(classes=6), **values)
    assert not without.told(StabilityLooked)
    assert same(without.weights, ran.weights)
    assert without.timeline.losses() == ran.timeline.losses()


def test_a_task_that_is_ended_early_is_told_of_before_its_end(tmp_path):
    answer = at_task(task_1=[FinishTask()])
    found = run(tmp_path / "run", class_tasks(), strategy=ER(), training=LOOKING, answer=answer)
    (record,) = found.told(StabilityLooked)
    assert (record.task, record.step) == (1, found.told(TaskEnded)[1].step)
    outcome = Outcome.of("ER", found.timeline)
    assert outcome.stability == [record.gap for record in [record] if record.gap is not None]


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.records = []

    def tell(self, record):
        self.records.append(record)


def loader(task, taken):
    shard = TrainingShard({"x": torch.zeros(9)})
    made = TaskLoader(task, [task], shard, largest=9, epochs=99, batch=1, key=(0, 0))
    made.taken = taken
    return made


def test_the_worst_within_the_window_counts_and_a_checkpoint_in_it_loses_nothing():
    errors = {0: 0.2, 10: 0.3, 20: 0.5, 30: 0.4, 40: 0.45, 50: 0.1, 60: 0.9}
    taken = iter([0, 10, 20])
    stability = Stability(lambda task: errors[next(taken)], told := Told(), every=10)
    stability.arrived(4)
    for step in range(1, 21):
        stability.stepped(loader(4, step), step=step)
    kept = stability.to_plain()
    rest = iter([30, 40, 50, 60])
    again = Stability(lambda task: errors[next(rest)], told, every=10)
    again.restore(kept)
    for step in range(21, 70):
        again.stepped(loader(4, step), step=step)
    assert told.records == [StabilityLooked(step=50, task=4, before=0.2, worst=0.5, at=20)]
    again.restore(None)
    again.stepped(loader(4, 80), step=80)
    again.ended(4, step=81)
    assert len(told.records) == 1


def test_where_nothing_can_be_evaluated_nothing_is_told():
    stability = Stability(lambda task: None, told := Told(), every=1)
    stability.arrived(1)
    stability.stepped(loader(1, 1), step=1)
    stability.ended(1, step=1)
    assert told.records == []


@pytest.mark.parametrize(
    ("before", "worst", "gap"), [(0.2, 0.5, 2.5), (0.2, 0.2, 1.0), (0.0, 0.0, 1.0), (0.0, 0.1, None)]
)
def test_a_ratio_to_no_error_is_none(before, worst, gap):
    assert StabilityLooked(step=1, task=1, before=before, worst=worst, at=1).gap == gap
