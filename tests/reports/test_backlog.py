"""How long what has arrived will take."""

from __future__ import annotations

import pytest
from runkit import arrived

from rehearsal_kit.record.records import (
    Applied,
    BranchBegan,
    CheckpointTaken,
    StateChanged,
    Steps,
    TaskBegan,
    TaskEnded,
    TaskSetAside,
)
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.backlog import backlog


def in_force(step: int = 0, each: int = 0, **settings: float | str) -> Applied:
    return Applied(rank=0, step=step, number=0, kind="Steer", digest="d", settings=settings, batch=each)


def began(task: int, steps: int, step: int = 0) -> TaskBegan:
    return TaskBegan(step=step, task=task, steps=steps, time=0.0)


def trained(first: int, count: int, task: int = 0, seconds: float = 6.0, branch: int = 0) -> Steps:
    return Steps(
        first=first, task=task, losses=(1.0,) * count, seconds=seconds * count, waited=0.0, hidden=0.0,
        representatives=0, remote=0, stored=0, time=0.0, branch=branch,
    )  # fmt: skip


def ended(task: int, step: int = 0) -> TaskEnded:
    return TaskEnded(step=step, task=task, seconds=1.0, time=0.0)


def test_nothing_is_known_before_the_first_steps():
    assert backlog(Timeline()).words == "no task waits"
    timeline = Timeline([arrived(0), arrived(1), in_force(batch=16, strategy="ER")])
    assert (backlog(timeline).waiting, backlog(timeline).minutes) == (2, None)
    timeline.append(began(0, 20))
    assert backlog(timeline).minutes is None
    assert backlog(timeline).words == "1 task waits"


def test_what_is_left_of_the_task_under_way_and_what_waits():
    timeline = Timeline([
        in_force(batch=16, strategy="ER"), arrived(0), arrived(1), arrived(2, training=80),
        began(0, 20), trained(0, 5),
    ])  # fmt: skip
    told = backlog(timeline)
    assert told.waiting == 2
    assert told.minutes == pytest.approx((15 + 20 + 10) * 6 / 60)
    assert told.words == "2 tasks wait, about 4 min"
    assert not told.grows


def test_the_median_of_the_last_steps_counts():
    timeline = Timeline([in_force(batch=16), arrived(0), began(0, 200)])
    timeline.append(trained(0, 40, seconds=60.0))
    timeline.append(trained(40, 59, seconds=6.0))
    timeline.append(trained(99, 1, seconds=600.0))
    assert backlog(timeline).minutes == pytest.approx(100 * 6 / 60)


def test_a_larger_batch_takes_fewer_steps():
    timeline = Timeline([
        in_force(batch=16), arrived(0), arrived(1), began(0, 20), trained(0, 10), in_force(10, batch=32)
    ])  # fmt: skip
    assert backlog(timeline).minutes == pytest.approx((5 + 10) * 6 / 60)


def test_what_a_rank_takes_counts_where_a_mini_batch_is_rounded_up():
    """Of 1 new sample a step each of four ranks takes one: a step is a third of one of 12, not a twelfth."""
    timeline = Timeline([
        in_force(batch=12, each=3), arrived(0), began(0, 20), trained(0, 10), in_force(10, batch=1, each=1)
    ])  # fmt: skip
    assert backlog(timeline).minutes == pytest.approx(30 * 6 / 60)


@pytest.mark.parametrize("strategy", ["FromScratch", "Cumulative"])
def test_strategies_that_train_on_all_tasks_take_longer_with_each(strategy):
    timeline = Timeline([
        in_force(batch=16, strategy=strategy), arrived(0), arrived(1), arrived(2), arrived(3),
        TaskSetAside(step=0, name="scan 2", path="/p", reason="x"), began(0, 20), trained(0, 20),
    ])  # fmt: skip
    assert backlog(timeline).minutes == pytest.approx((40 + 60) * 6 / 60)


def test_after_a_loss_that_is_no_number_the_task_begins_anew():
    timeline = Timeline([
        in_force(batch=16), arrived(0), began(0, 20), trained(0, 12),
        StateChanged(step=13, state="paused", reason="the loss is nan"),
    ])  # fmt: skip
    assert backlog(timeline).minutes == pytest.approx(2.0)


def test_what_was_rolled_back_is_to_be_trained_again():
    timeline = Timeline([
        in_force(batch=16), arrived(0), arrived(1), began(0, 20), trained(0, 10),
        CheckpointTaken(step=10, checkpoint=1, weights="", time=0.0), trained(10, 10), ended(0), began(1, 20),
    ])  # fmt: skip
    assert backlog(timeline).minutes == pytest.approx(2.0)
    timeline.append(BranchBegan(branch=1, step=10, checkpoint=1, parent=0, left=20, time=0.0))
    assert backlog(timeline).waiting == 1
    assert backlog(timeline).minutes == pytest.approx(3.0)


def test_a_backlog_grows_when_more_arrive_than_are_trained():
    timeline = Timeline([in_force(batch=16), *(arrived(task) for task in range(6))])
    for task in range(3):
        for record in (began(task, 2, 2 * task), trained(2 * task, 2, task), ended(task)):
            timeline.append(record)
    assert not backlog(timeline).grows  # they were all there at the beginning
    timeline.append(began(3, 2, 6))
    for task in range(6, 10):
        timeline.append(arrived(task))
    assert backlog(timeline).grows
    assert backlog(timeline).words == "6 tasks wait, about 1 min, more arrive than are trained"


def test_one_arrival_per_task_is_no_growth():
    timeline = Timeline([in_force(batch=16), arrived(0), arrived(1)])
    for task in range(8):
        for record in (began(task, 2, 2 * task), trained(2 * task, 2, task), arrived(task + 2)):
            timeline.append(record)
            assert not backlog(timeline).grows
        timeline.append(ended(task))
        assert not backlog(timeline).grows


def test_all_trained():
    timeline = Timeline([in_force(batch=16), arrived(0), began(0, 2), trained(0, 2), ended(0)])
    assert (backlog(timeline).minutes, backlog(timeline).words) == (0, "no task waits")


def test_long_ones_are_said_in_hours():
    timeline = Timeline([in_force(batch=16), arrived(0), began(0, 1201), trained(0, 1)])
    assert backlog(timeline).words == "no task waits, about 2.0 h"
