"""What another number of ranks changes: the samples of a step and the learning rate; it is said, and kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from walks import Generation, Walk, broken_promises, carry_out, walk_tasks

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.references import Incremental
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.live_settings import LiveSettings, StepSizes
from rehearsal_kit.record.records import Noted, Steps, TaskBegan
from rehearsal_kit.record.timeline import Timeline

REHEARSAL = Rehearsal(representatives=6, distillation=4, candidates=3, capacity=40)


def sizes_of(ranks, *, strategy=None, **training):
    settings = LiveSettings(
        training=Training(batch=16, **training), rehearsal=REHEARSAL, strategy=strategy or DERpp(draws=2)
    )
    return settings.sizes(ranks)


def test_sizes_are_of_each_rank_unless_they_are_of_all_together():
    whole = StepSizes(batch=16, representatives=6, distillation=4, candidates=3)
    for scaling in ("none", "linear", "sqrt"):
        assert sizes_of(4, scaling=scaling) == whole
    assert sizes_of(1, scaling="global") == whole
    assert sizes_of(4, scaling="global") == StepSizes(
        batch=4, representatives=2, distillation=1, candidates=1, fewer=(2, 0)
    )
    assert sizes_of(32, scaling="global") == StepSizes(
        batch=2, representatives=1, distillation=1, candidates=1, fewer=(26, 28)
    )


def test_what_cannot_be_divided_is_said_as_it_is():
    settings = LiveSettings(training=Training(batch=5, scaling="global"), rehearsal=REHEARSAL, strategy=ER())
    said = "of 4 ranks takes 2, with its part of 6 representatives; 8 together, as ranks take equal parts, of"
    assert said in settings.scaled(4)
    assert "of 5 ranks takes 2, with its part of 6 representatives; 10 together" in settings.scaled(5)
    assert sizes_of(2, scaling="global").batch == 8
    whole = LiveSettings(training=Training(batch=6), rehearsal=REHEARSAL, strategy=ER())
    assert whole.scaled(3).endswith(
        "takes 2, with its part of 6 representatives; as many steps as on one rank"
    )
    assert settings.scaled(1) == ""


def test_no_rank_takes_a_single_sample_unless_the_mini_batch_has_but_one():
    """Else a network with batch norm would set every task aside once a run is resumed on many ranks."""
    for batch, ranks, each in ((32, 64, 2), (2, 2, 2), (3, 2, 2), (1, 4, 1), (5, 1, 5)):
        settings = LiveSettings(training=Training(batch=batch), rehearsal=REHEARSAL, strategy=ER())
        assert settings.sizes(ranks).batch == each


def test_nothing_is_drawn_that_a_strategy_has_no_use_for():
    for strategy, drawn in ((Incremental(), (0, 0)), (ER(), (2, 0)), (DERpp(draws=1), (2, 0))):
        sizes = sizes_of(4, strategy=strategy, scaling="global")
        assert (sizes.representatives, sizes.distillation) == drawn


@pytest.mark.parametrize(("scaling", "highest"), [("linear", 8.0), ("sqrt", math.sqrt(8)), ("global", 1.0)])
def test_the_learning_rate_rises_to_its_multiple_within_the_first_epoch(scaling, highest):
    training = Training(scaling=scaling)
    factors = [training.factor(step, steps=12, steps_per_epoch=4, ranks=8) for step in range(12)]
    rising = [1 + (highest - 1) * part for part in (0.25, 0.5, 0.75, 1.0)]
    assert factors == pytest.approx([*rising, *[highest] * 8])
    alone = [training.factor(step, steps=12, steps_per_epoch=4) for step in range(12)]
    assert alone == [1.0] * 12


def test_another_word_is_refused():
    with pytest.raises(SettingsError, match="scaling is 'more'; it must be one of 'none', 'global'"):
        Training(scaling="more")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaling") / "tasks"
    return folder, walk_tasks(folder)


def walked(tasks, folder, *generations, ranks, policy):
    """Two tasks of 16 and 17 samples with a mini-batch of 4; the policy decides about the scaling."""
    first = replace(generations[0], commands=((0, tasks[1][3]), (0, tasks[1][1]), *generations[0].commands))
    made = carry_out(Walk(ranks, "ER", policy, (first, *generations[1:])), folder / "run", tasks[0])
    assert broken_promises(made, folder / "again") == []
    return Timeline.load(made.spec.run.timeline).lineage()


def test_of_all_ranks_together_every_number_of_ranks_takes_the_same_steps(tasks, tmp_path):
    steps, said, rows = {}, {}, {}
    for ranks in (1, 2):
        timeline = walked(tasks, tmp_path / str(ranks), Generation(), ranks=ranks, policy="reservoir")
        steps[ranks] = [record.steps for record in timeline.records(TaskBegan)]
        said[ranks] = [record.text for record in timeline.records(Noted) if "scaling" in record.text]
        rows[ranks] = sum(record.rows for record in timeline.records(Steps))
    assert steps[1] == steps[2] == [4, 4]
    assert rows[1] == rows[2] > 8 * 4  # of three representatives one rank takes two and the other one
    assert [len(each) for each in said.values()] == [0, 1]
    assert "of 4 new samples a step each of 2 ranks takes 2, with its part of 3 representatives" in said[2][0]
    fewer = walked(tasks, tmp_path / "each", Generation(), ranks=4, policy="quotas")
    assert [record.steps for record in fewer.records(TaskBegan)] == [1, 1]
    assert not [record for record in fewer.records(Noted) if "scaling" in record.text]


def test_a_run_that_goes_on_with_other_ranks_in_the_middle_of_a_task_keeps_its_steps(tasks, tmp_path):
    """Some steps of the first task on two ranks, the others on one."""
    first = Generation(ends="interrupted", ranks=1)
    cut = replace(first, commands=((2, tasks[1][5]),))
    timeline = walked(tasks, tmp_path, cut, Generation(), ranks=2, policy="reservoir")
    taken = timeline.losses()[0]
    assert len(taken) == 4 + 4 + 2  # of 16, 17 and 8 samples
    said = [record.text for record in timeline.records(Noted) if "scaling" in record.text]
    assert ["of 2 ranks takes 2" in each for each in said] == [True]
