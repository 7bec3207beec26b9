"""Sessions on a real cluster: two worker processes, TLS, a real process group."""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat

import cloudpickle
import numpy as np
import pytest
from distributed import Client
from intruder import listening
from ranks import CODE, Tiny

from rehearsal_kit.base.errors import (
    ClusterError,
    RankError,
    RunFolderError,
    ScanError,
    SessionError,
    SettingsError,
    TaskError,
)
from rehearsal_kit.base.settings import Recovery, Rehearsal, Training
from rehearsal_kit.cluster.cluster import start_cluster
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.learning.strategies.strategy import Strategy
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import StateChanged, Steps, TaskArrived, TaskSetAside
from rehearsal_kit.session.attach import attach, resume
from rehearsal_kit.session.progress_bar import train_to_the_end
from rehearsal_kit.session.session import Session

pytestmark = pytest.mark.cluster
DEADLINE_S = 60


@pytest.fixture(scope="module")
def cluster():
    # The workers import the network of these tests from where it is defined.
    with start_cluster("cpu", workers=2, idle_timeout_s=300, code=CODE) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    beamline = Beamline(folder=tmp_path_factory.mktemp("scans"), scans=2, seed=1)
    return [beamline.write(number) for number in range(2)]


def session_on(cluster, run, *, epochs: int = 2, strategy: Strategy | None = None, **changes) -> Session:
    values = {
        "network": Tiny(seed=1),
        "preparation": Preparation(size=16),
        "training": Training(batch=8, epochs=epochs, scaling="none"),
        "rehearsal": Rehearsal(representatives=16, candidates=4, capacity=80),
    }
    return Session(cluster, run=run, strategy=strategy or ER(), **{**values, **changes})


def test_a_watched_folder_is_learned_and_half_of_the_representatives_come_from_the_other_rank(
    cluster, tmp_path, scans
):
    with session_on(cluster, tmp_path / "run") as session:
        session.watch(str(scans[0].parent / "*.cxi"))
        session.start()
        session.until(lambda session: len(session.timeline.records(TaskArrived)) == 2, timeout=DEADLINE_S)
        session.finish_stream()
        assert session.wait(DEADLINE_S) == "finished"
        assert session.over
        assert session.preview() is None  # nobody is left to predict
    steps = session.timeline.records(Steps)
    drawn, remote = sum(s.representatives for s in steps), sum(s.remote for s in steps)
    assert drawn > 500
    assert abs(remote / drawn - 0.5) < 4 * 0.5 / drawn**0.5
    assert len({joined.process for joined in session.timeline.records(Joined)}) == 2
    assert not list(session.run.path.glob("rendezvous*"))


def test_a_run_that_was_stopped_is_not_taken_for_one_that_has_learned_all(cluster, tmp_path, scans):
    """As demo and compare train: another kernel, or `rehearsal-kit stop`, may end the run meanwhile."""
    with session_on(cluster, tmp_path / "run", epochs=200) as session:
        session.submit(scans[0])
        session.start()
        session.until(lambda session: session.timeline.records(Steps), timeout=DEADLINE_S)
        session.stop()
        with pytest.raises(RankError, match=r"was stopped before it had learned all; rk\.resume"):
            train_to_the_end(session, "stopped", expected=1, finish=False)


def test_a_person_steers_and_both_ranks_obey_at_the_same_step(cluster, tmp_path, scans):
    training = Training(batch=8, epochs=200, average=0.9, scaling="none")
    with session_on(cluster, tmp_path / "run", training=training) as session:
        for scan in scans:
            session.submit(scan)
        session.start()
        session.until(lambda session: session.timeline.records(Steps), timeout=DEADLINE_S)
        number = session.pause()
        session.until(lambda session: session.state == "paused", timeout=DEADLINE_S)
        still = session.timeline.last(Steps)
        session.until(lambda session: session.preview() is not None, timeout=DEADLINE_S)
        assert session.preview().predicted["phase"].shape == (16, 16)
        session.until(lambda session: session.preview(trained=True) is not None, timeout=DEADLINE_S)
        by_average, by_weights = session.preview(), session.preview(trained=True)
        assert (by_average.trained, by_weights.trained) == (False, True)
        assert not np.array_equal(by_average.predicted["phase"], by_weights.predicted["phase"])
        steered = session.steer(representatives=5, learning_rate=2e-4)
        session.until(lambda session: len(session.acknowledged(steered)) == 2, timeout=DEADLINE_S)
        assert session.timeline.last(Steps) == still
        first, second = session.acknowledged(steered)
        assert (first.rank, second.rank) == (0, 1)
        assert first.step == second.step == session.acknowledged(number)[0].step
        assert first.digest == second.digest
        assert first.settings == {
            "learning_rate": 2e-4,
            "representatives": 5,
            "distillation": 0,
            "batch": 8,
            "candidates": 4,
            "policy": "quotas",
            "capacity": 80,
            "strategy": "ER",
            "balance": "equal",
        }
        resumed = session.resume()
        session.until(lambda session: session.timeline.last(Steps).first > still.first, timeout=DEADLINE_S)
        larger = session.steer(capacity=120)
        session.until(lambda session: session.timeline.last(Steps).stored == 120, timeout=DEADLINE_S)
        smaller = session.steer(capacity=40)
        session.until(lambda session: session.timeline.last(Steps).stored == 40, timeout=DEADLINE_S)
        too_large = session.steer(capacity=2**40)
        session.until(lambda session: len(session.acknowledged(too_large)) == 2, timeout=DEADLINE_S)
        said = [record.refused for number in (larger, smaller) for record in session.acknowledged(number)]
        assert said == [""] * 4
        assert all("GiB are free there" in record.refused for record in session.acknowledged(too_large))
        assert session.acknowledged(resumed)[0].step == first.step
        with pytest.raises(SettingsError, match="finite number"):
            session.steer(learning_rate=float("nan"))
        session.stop()
        assert session.wait(DEADLINE_S) == "stopped"
        with pytest.raises(SessionError, match="too late"):
            session.pause()


def test_a_bad_scan_among_good_ones_is_set_aside(cluster, tmp_path, scans):
    bad = tmp_path / "bad.cxi"
    bad.write_bytes(scans[0].read_bytes()[:9000])
    with session_on(cluster, tmp_path / "run", epochs=1) as session:
        for scan in (scans[0], bad, scans[1]):
            session.submit(scan)
        session.finish_stream()
        session.start()
        with pytest.warns(UserWarning, match=r"1 task was set aside: bad: .*session\.table\(\)"):
            assert session.wait(DEADLINE_S) == "finished"
    (aside,) = session.timeline.records(TaskSetAside)
    assert str(bad) in aside.reason
    table = session.table()
    assert list(table["set aside"]) == ["", "", aside.reason]
    assert list(table["training samples"].notna()) == [True, True, False]
    assert list(table.index[:2]) == [0, 1]


def test_a_run_that_has_trained_nothing_has_not_just_finished(cluster, tmp_path):
    bad = tmp_path / "bad.cxi"
    bad.write_text("nothing")
    with session_on(cluster, tmp_path / "run", epochs=1) as session:
        for path in (bad, tmp_path / "gone.cxi"):
            session.submit(path)
        session.finish_stream()
        session.start()
        with pytest.raises(TaskError, match=r"nothing was trained: 2 tasks were set aside: bad: .*gone: "):
            session.wait(DEADLINE_S)
        assert session.state == "finished"
        with pytest.raises(TaskError, match="nothing was trained"):
            asyncio.run(session.done())
    assert list(session.table()["name"]) == ["bad", "gone"]
    with pytest.raises(SessionError, match=r"came too late.*rk\.resume\("):
        session.reopen()


def test_waiting_does_not_block_a_notebook(cluster, tmp_path, scans):
    async def notebook(session: Session) -> str:
        session.start()
        with pytest.raises(SessionError, match=r"await session\.done"):
            session.wait()
        return await session.done()

    with session_on(cluster, tmp_path / "run", epochs=1) as session:
        session.submit(scans[0])
        session.finish_stream()
        assert asyncio.run(notebook(session)) == "finished"


def test_one_run_at_a_time(cluster, tmp_path, scans):
    with session_on(cluster, tmp_path / "first") as first, session_on(cluster, tmp_path / "second") as second:
        first.start()
        first.until(lambda session: session.timeline.last(StateChanged), timeout=DEADLINE_S)
        second.start()
        with pytest.raises(RankError, match=r"trains for .*first already"):
            second.wait(DEADLINE_S)
        assert first.state == "waiting"
        first.close()
        with resume(second.run.path, cluster, network=Tiny(seed=1)) as again:  # as it was said
            again.until(lambda session: session.timeline.last(StateChanged), timeout=DEADLINE_S)
            assert again.state == "waiting"


def test_who_leaves_a_run_that_starts_lets_it_go_on_and_another_kernel_steers_it(cluster, tmp_path, scans):
    first = session_on(cluster, tmp_path / "run", epochs=200)
    first.submit(scans[0])
    first.start()
    first.leave()
    assert first.state == "left"
    assert cluster.client.status == "running"  # it is not this session's own
    second = attach(tmp_path / "run")
    assert second.leads  # nobody else does
    second.leave()
    assert second.cluster.client.status == "closed"
    with pytest.raises(SessionError, match=r"too late: this session has left its run; rk\.attach\("):
        second.pause()
    with attach(tmp_path / "run", take=True) as third:
        third.until(lambda session: session.timeline.records(Steps), timeout=DEADLINE_S)
        steered = third.steer(learning_rate=2e-4)
        third.until(lambda session: len(session.acknowledged(steered)) == 2, timeout=DEADLINE_S)
        assert [record.refused for record in third.acknowledged(steered)] == ["", ""]
        third.stop()
        assert third.wait(DEADLINE_S) == "stopped"
    third.cluster.disconnect()


def test_clear_refusals(cluster, tmp_path, scans):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="never written over"):
        session_on(cluster, tmp_path / "old")
    with pytest.raises(
        SettingsError, match=r"fewest is 3, and this cluster has 2 workers; give .* at most 2"
    ):
        session_on(cluster, tmp_path / "run", recovery=Recovery(fewest=3))
    with pytest.warns(UserWarning, match=r"Tiny .*not one of ours.*resume\(run, cluster, network="):
        session = session_on(cluster, tmp_path / "run")
    with session:
        with pytest.raises(ScanError, match="does not exist"):
            session.watch(str(tmp_path / "nowhere" / "*.cxi"))
        session.start()
        with pytest.raises(SessionError, match="make a new Session"):
            session.start()
    with (
        pytest.warns(UserWarning, match=f"rehearsal-kit stop {cluster.files.folder.name}"),
        pytest.raises(ClusterError, match="'auto', 'cpu' or 'cuda'"),
    ):
        start_cluster("gpu")


def test_what_workers_cannot_import_is_refused_in_words_and_the_advice_works(cluster, tmp_path, scans):
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "of_the_group.py").write_text(
            "from ranks import Tiny\nclass Theirs(Tiny): pass\n"
        )
        patch.syspath_prepend(str(tmp_path / "code"))
        import of_the_group

        def session():
            return session_on(cluster, tmp_path / "run", epochs=1, network=of_the_group.Theirs(seed=1))

        first = session()
        first.submit(scans[0])
        with pytest.raises(SettingsError, match=r"module of_the_group.*register_pickle_by_value\(of_the"):
            first.start()
        assert first.over
        assert not (tmp_path / "run").exists()
        cloudpickle.register_pickle_by_value(of_the_group)
        try:
            with session() as second:
                second.submit(scans[0])
                second.finish_stream()
                second.start()
                assert second.wait(DEADLINE_S) == "finished"
        finally:
            cloudpickle.unregister_pickle_by_value(of_the_group)


def test_what_the_first_task_shows_to_be_impossible_is_refused_by_start(cluster, tmp_path, scans):
    session = session_on(cluster, tmp_path / "run", preparation=Preparation(size=16), network=Flat())
    session.watch(str(scans[0].parent / "*.cxi"))
    with pytest.raises(SettingsError, match=r"cannot be trained: .*output 'amplitude' has shape"):
        session.start()
    assert not (tmp_path / "run").exists()


class Flat(Tiny):
    """Its outputs are not images."""

    def __init__(self) -> None:
        super().__init__(seed=1)

    def forward(self, diffraction):
        return {name: output.flatten(1) for name, output in super().forward(diffraction).items()}


def test_nobody_without_the_key_gets_in_and_nothing_listens_to_the_network(cluster):
    assert stat.S_IMODE(cluster.files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.files.folder.stat().st_mode) == 0o700
    address = cluster.address.scheduler
    assert address.startswith("tls://127.0.0.1:")
    with pytest.raises(OSError, match=r"(?i)timed out|closed|connect"):
        Client(address.replace("tls://", "tcp://"), timeout="2s", set_as_default=False)
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: SIM117 - any of these may refuse
        with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as wrapped:
            wrapped.recv(1)  # TLS 1.3 tells a client without certificate only now
    assert {host for host, _ in listening(cluster.processes()[1:])} == {"127.0.0.1"}


def test_while_ranks_train_they_listen_on_loopback_only(cluster, tmp_path, scans):
    with session_on(cluster, tmp_path / "run", epochs=200) as session:
        session.submit(scans[0])
        session.start()
        session.until(lambda session: session.timeline.records(Steps), timeout=DEADLINE_S)
        assert {host for host, _ in listening(cluster.processes()[1:])} == {"127.0.0.1"}
