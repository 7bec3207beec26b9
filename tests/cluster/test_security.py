"""Who has no key gets nothing out of a cluster that trains, and does not disturb it either."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import labkit
import pytest
from intruder import NOBODY, as_nobody, break_in, disguises, listening, pages, spill, web_ports
from ranks import CODE, Tiny

from rehearsal_kit.base.errors import ClusterError, RunFolderError
from rehearsal_kit.base.processes import family, words
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.cluster.cluster import reach, start_cluster
from rehearsal_kit.data.preparation import Preparation
from rehearsal_kit.data.simulated_beamline import Beamline
from rehearsal_kit.learning.strategies.replay import ER
from rehearsal_kit.record.records import Steps
from rehearsal_kit.record.run_folder import RunFolder
from rehearsal_kit.session.session import Session

pytestmark = pytest.mark.cluster
DEADLINE_S = 60
DASK_PAGES = (
    "/",
    "/status",
    "/health",
    "/metrics",
    "/info/main/workers.html",
    "/json/counts.json",
    "/sysmon",
)


@pytest.fixture(scope="module")
def home():
    """Where everybody may look in: what keeps others out must be our own folders."""
    folder = Path(tempfile.mkdtemp(prefix="security-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REHEARSAL_KIT_HOME", str(home / "kit"))
        # The workers import the network of these tests from where it is defined.
        cluster = start_cluster("cpu", workers=2, idle_timeout_s=300, code=CODE)
    with cluster:
        yield cluster


@pytest.fixture(scope="module")
def ports(cluster):
    """Of the scheduler, the nannies and the workers, before ranks open theirs."""
    return listening(cluster.processes()[1:])


@pytest.fixture(scope="module")
def dask_ports(ports):
    """Those where Dask takes orders: all but the web pages, which have a test of their own."""
    return sorted(ports - web_ports(ports))


@pytest.fixture(scope="module")
def session(cluster, ports, home):
    """A run of two ranks that goes on as long as the tests do."""
    scan = Beamline(folder=home, scans=1, seed=1).write(0)
    with Session(
        cluster,
        run=home / "run",
        strategy=ER(),
        network=Tiny(seed=1),
        preparation=Preparation(size=16),
        training=Training(batch=8, epochs=100_000, scaling="none"),
        rehearsal=Rehearsal(representatives=16, candidates=4, capacity=80),
    ) as session:
        session.submit(scan)
        session.start()
        session.until(lambda session: session.timeline.last(Steps), timeout=DEADLINE_S)
        yield session


@pytest.fixture
def goes_on(session):
    """Fails a test after which the run has stopped, or has lost a rank."""
    yield
    seen = session.timeline.last(Steps).first
    session.until(lambda session: session.timeline.last(Steps).first > seen, timeout=DEADLINE_S)
    assert session.state == "running"


def test_jupyter_answers_nobody_without_the_token(tmp_path):
    # Before all others: it starts much quicker while no ranks train.
    environment = labkit.environment(tmp_path / "home")
    runtime = Path(environment["JUPYTER_RUNTIME_DIR"])
    runtime.rmdir()  # so that Jupyter makes it, as it does for a person
    # From a folder with modules of somebody else, named as those that JupyterLab imports.
    strange, marker = tmp_path / "strange", tmp_path / "marker"
    strange.mkdir()
    for name in ("jupyterlab", "tornado", "psutil", "json", "jupyter_server_config"):
        (strange / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()")
    tool = str(Path(sys.executable).with_name("rehearsal-kit"))
    command = [tool, "lab", str(tmp_path / "mine"), "--no-browser"]
    process = subprocess.Popen(
        [*command, "--jupyter=--allow-root", f"--jupyter=--port={labkit.free_port()}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=strange,
    )
    try:
        said = iter(process.stdout.readline, "")
        found = next(
            match for line in said if (match := re.search(r"(http://127[^/]+)/\S*token=(\w+)", line))
        )
        address, token = found.groups()
        labkit.answer(process, f"{address}/api/status?token={token}")
        members = family(process.pid)  # some of them, that JupyterLab asks for a version, end meanwhile
        assert {host for host, _ in listening(members)} == {"127.0.0.1"}
        assert not [member for member in members if token in " ".join(words(member))]
        doors = ["/api/contents", "/api/kernels", "/api/terminals", "/api/contents?token=guessed"]
        assert set(pages(address, doors).values()) == {403}
        assert any(token in path.read_text() for path in runtime.iterdir())
        assert not runtime.stat().st_mode & 0o077
        assert set(as_nobody("pages", address=address, paths=doors).values()) == {403}
        assert not marker.exists()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_without_the_key_nothing_is_executed_at_any_port(dask_ports, goes_on, home):
    assert len(dask_ports) == 5  # scheduler, two nannies, two workers
    attempts = break_in(dask_ports, home / "broken-in", disguises())
    assert len(attempts) == 5 * 3 * 2
    assert [what for what, came in attempts.items() if not came.startswith("refused")] == []
    assert not (home / "broken-in").exists()


def test_with_the_key_it_is(cluster, dask_ports, goes_on, home):
    """Else the test above would pass whatever a port answers."""
    ours = {"the key": ("tls", cluster.files.security().get_connection_args("client"))}
    for count, port in enumerate(dask_ports):
        break_in([port], home / f"let-in-{count}", ours)
    assert len(list(home.glob("let-in-*"))) == len(dask_ports)


def test_the_web_pages_of_dask_answer_nothing(ports, goes_on):
    answering = web_ports(ports)
    assert len(answering) == 3  # of the scheduler and of two workers
    for host, port in answering:
        assert set(pages(f"http://{host}:{port}", DASK_PAGES).values()) == {404}


def test_another_user_can_neither_read_the_key_nor_get_in(cluster, session, dask_ports, goes_on, home):
    secrets = [cluster.files.key, cluster.files.address, cluster.files.folder, cluster.files.log]
    secrets += [session.run.path, session.run.settings]
    read = as_nobody("read", paths=[*map(str, secrets), str(home)])
    assert "run" in read.pop(str(home))  # the way to them is open
    assert set(read.values()) == {"PermissionError"}
    marker = Path(tempfile.gettempdir()) / f"{home.name}-nobody"
    attempts = as_nobody("break_in", ports=dask_ports, marker=str(marker))
    assert [what for what, came in attempts.items() if not came.startswith("refused")] == []
    assert not marker.exists()


def test_garbage_at_the_ports_of_the_ranks_does_not_disturb_them(cluster, ports, session, goes_on):
    opened = listening(cluster.processes()[1:]) - ports
    assert len(opened) >= 2, "no port of gloo found"
    assert {host for host, _ in opened} == {"127.0.0.1"}
    for port in opened:
        for garbage in (b"", b"\0", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 8, b"\xff" * 4096, os.urandom(2**16)):
            spill(port, garbage)


def test_a_key_or_folder_that_others_can_touch_is_refused_with_the_reason(cluster, session, goes_on):
    key, folder = cluster.files.key, cluster.files.folder
    aside = key.with_name("aside.pem")
    key.rename(aside)
    key.symlink_to(aside)
    with pytest.raises(ClusterError, match=r"key\.pem is a symbolic link"):
        reach(cluster.place)
    aside.rename(key)
    for path, mode, cure in ((key, 0o640, 0o600), (folder, 0o750, 0o700)):
        path.chmod(mode)
        with pytest.raises(ClusterError, match=f"{path.name} .*mode {mode:o}; .*yours alone: chmod {cure:o}"):
            reach(cluster.place)
        path.chmod(cure)
    session.run.path.chmod(0o770)
    with pytest.raises(RunFolderError, match=r"mode 770; .*not writable by others"):
        RunFolder(session.run.path).require_private()
    session.run.path.chmod(0o700)
    with pytest.raises(RunFolderError, match="never written over"):
        RunFolder(session.run.path).create()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(cluster, goes_on):
    os.chown(cluster.files.key, NOBODY, NOBODY)
    with pytest.raises(ClusterError, match=f"belongs to user {NOBODY}"):
        reach(cluster.place)
    os.chown(cluster.files.key, 0, 0)
