"""What a run goes on with is known from its folder, and so is what it cannot be steered to."""

from __future__ import annotations

import pytest
from runkit import ALONE, CutOffError, Net, carry_out, class_tasks, job_in

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import Rehearsal
from rehearsal_kit.learning.strategies.dark import DERpp
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.rank.going_on import GoingOn
from rehearsal_kit.rank.run_spec import keep_spec
from rehearsal_kit.record.commands import FinishStream, RollBack, Steer, TakeCheckpoint
from rehearsal_kit.record.records import Applied
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.attach import resume


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return class_tasks(tmp_path_factory.mktemp("tasks") / "tasks", tasks=2)


def cut_off(folder, tasks, plan, *, cut, **changes):
    """A run of one rank, ended at a step as by kill -9."""
    spec = job_in(folder, **changes)
    keep_spec(spec, ranks=1)
    with pytest.raises(CutOffError):
        carry_out(ALONE, spec, [*[(0, task) for task in tasks], (0, FinishStream()), *plan], cut=cut)
    return spec


PLAN = [
    (3, Steer(learning_rate=0.01, capacity=30)),
    (5, TakeCheckpoint()),
    (6, Steer(batch=5)),
    (8, Steer(strategy="ER")),
    (10, RollBack(checkpoint=1)),
    (12, Steer(policy="fifo", clip_norm=2.0)),
]


@pytest.mark.parametrize("cut", [2, 4, 7, 9, 14])
def test_settings_in_force_are_those_that_the_ranks_told_last(tmp_path, tasks, cut):
    plan = PLAN if cut > 10 else [each for each in PLAN if each[0] < 10]
    spec = cut_off(tmp_path / "run", tasks, plan, cut=cut)
    (*_, last) = Timeline.load(spec.run.timeline).records(Applied)
    going_on = GoingOn.of(spec)
    assert going_on.live_settings.plain == last.settings
    assert {arrived.path for arrived in going_on.tasks} == {task.path for task in tasks}
    if cut > 5:
        assert going_on.signature.classes == {"label": 16}
        assert going_on.buffer.capacity == 30
        assert 0 < going_on.buffer.rows <= 30


def test_a_damaged_checkpoint_is_passed_over_and_wishes_that_nobody_heard_count(tmp_path, tasks):
    spec = cut_off(tmp_path / "run", tasks, [*PLAN[:4], (9, TakeCheckpoint())], cut=11)
    assert [*find_checkpoints(spec.run.checkpoints)] == [1, 2]
    (spec.run.checkpoints / "000002" / "state.json").write_text("{}")
    going_on = GoingOn.of(spec)
    assert going_on.live_settings.strategy.name == "ER"
    with spec.run.wishes.open("a") as ledger:
        ledger.write('{"number": 99, "holder": "b", "kind": "Steer", "batch": 3}\n')
    assert GoingOn.of(spec).live_settings.training.batch == 3


def test_what_ranks_would_refuse_is_refused_before_they_are_started(tmp_path, tasks):
    ten = {"representatives": 6, "capacity": 40}
    spec = cut_off(
        tmp_path / "run", tasks, [(5, TakeCheckpoint())], cut=7, strategy=ER(), rehearsal=Rehearsal(**ten)
    )
    going_on = GoingOn.of(spec)
    for command, words in (
        (Steer(strategy="DERpp", draws=1), "stores no outputs, which DERpp needs"),
        (Steer(alpha=0.2), "ER has no alpha; give the strategy as well"),
        (Steer(strategy="CLSER"), r"begin the run with Training\(average=0.999, plastic_average=0.9\)"),
        (Steer(capacity=5), "hold at most 5 samples, and none is drawn twice"),
    ):
        with pytest.raises(SettingsError, match=words):
            going_on.steered(command)
    least = going_on.steered(Steer(capacity=2, representatives=1))
    with pytest.raises(SettingsError, match="capacity is 2 samples for 3 ranks"):
        least.require_room(3, dict)
    large = going_on.steered(Steer(capacity=4000))
    row_bytes = going_on.buffer.layout.row_bytes
    held = going_on.buffer.rows * row_bytes
    large.require_room(2, lambda: {"a": (2, 4000 * row_bytes / 0.8 + held)})
    with pytest.raises(SettingsError, match="Lower capacity"):
        large.require_room(2, lambda: {"a": (2, 4000 * row_bytes / 0.8 + held - 9)})
    going_on.steered(Steer(capacity=30)).require_room(1, lambda: pytest.fail("it does not grow"))


def test_a_run_that_was_not_begun_goes_on_with_what_it_begins_with(tmp_path):
    strict = Rehearsal(removal="loss", representatives=4)
    spec = job_in(tmp_path / "run", network=Net(), strategy=DERpp(), rehearsal=strict)
    keep_spec(spec, ranks=1)
    going_on = GoingOn.of(spec)
    assert (going_on.live_settings.rehearsal, going_on.tasks, going_on.buffer) == (strict, (), None)
    with pytest.raises(SettingsError, match="removal is 'loss' and policy 'fifo'"):
        going_on.steered(Steer(policy="fifo"))
    with pytest.raises(SettingsError, match=r"only 0\.00 GiB are free"):
        going_on.require_room(1, lambda: {"a": (1, 8)})


@pytest.mark.parametrize("steer", [5, ["batch"], {8: "batch"}, "batch=8", ()])
def test_what_is_no_dictionary_of_settings_is_refused_in_words(tmp_path, steer):
    with pytest.raises(SettingsError, match="it must be a dictionary of settings by name, such as"):
        resume(tmp_path / "none", None, steer=steer)
