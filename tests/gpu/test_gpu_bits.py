"""On a GPU runs have the bits of each other, whatever happens to them, unless it is asked for otherwise."""

from __future__ import annotations

import pytest
from devicekit import DEVICE, KIND, SUBJECTS, Slowed
from faultkit import (
    DEADLINE_S,
    RECOVERY_S,
    Expected,
    answered,
    kill,
    require_whole,
    session_on,
    shared_cluster,
    until,
)
from runkit import same
from safetensors.torch import load_file

from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import CheckpointKept
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.session.attach import resume
from rehearsal_kit.session.replay import compare_runs, replay_run

pytestmark = [pytest.mark.gpu, pytest.mark.cluster]


@pytest.fixture(scope="module")
def cluster(gpu):
    with shared_cluster(1, kind=KIND) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=list(SUBJECTS))
def run_of(request):
    """What `session_on` is to make a run of."""
    build, tasks_of = SUBJECTS[request.param]
    return lambda: {"network": Slowed(build()), "tasks_of": tasks_of, "sizes": (160, 160, 160)}


@pytest.fixture(scope="module")
def expected(cluster, run_of, tmp_path_factory):
    return Expected.of(cluster, tmp_path_factory.mktemp("expected") / "run", **run_of())


def test_two_runs_are_the_same(cluster, run_of, expected, tmp_path):
    with session_on(cluster, tmp_path / "run", **run_of()) as session:
        session.start()
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=0)
    assert {each.device for each in session.timeline.records(Joined)} == {DEVICE}


def test_the_only_rank_is_killed(cluster, run_of, expected, tmp_path):
    with session_on(cluster, tmp_path / "run", **run_of()) as session:
        session.start()
        until(session, lambda timeline: timeline.records(CheckpointKept))
        survived = kill(session, 0)
        assert session.wait(DEADLINE_S) == "finished"
        require_whole(session, expected, restarts=1, reason="worker of rank 0 is gone: its process has ended")
    assert survived.recovery_s < RECOVERY_S


def test_a_run_is_stopped_and_resumed_and_both_parts_are_replayed(cluster, run_of, expected, tmp_path):
    run = RunFolder(tmp_path / "run")
    with session_on(cluster, run.path, **run_of()) as session:
        session.start()
        until(session, lambda timeline: timeline.records(CheckpointKept))
        answered(session, session.stop())
    with resume(run.path, cluster, network=run_of()["network"]) as session:
        assert session.wait(DEADLINE_S) == "finished"
    assert same(load_file(run.weights), expected.weights)
    assert Timeline.load(run.timeline).losses() == (list(range(expected.steps)), expected.losses)
    again = RunFolder(tmp_path / "again")
    replay_run(run, again, network=run_of()["network"])
    compared = compare_runs(run, again)
    assert len(compared) >= 4  # three tasks and the end
    assert [each for each in compared if not each.same] == []
