"""Nothing that a test starts may outlive it: no thread, no process, no listening socket."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from rehearsal_kit.record.run_folder import RunFolder

pytest.register_assert_rewrite("faultkit")  # it says what has to hold, and so has to say what does not
GRACE_S = 10.0
# Kept for good by libraries, one of each per process: Dask's event loops and executors, tqdm's monitor.
OF_LIBRARIES = (
    "IO loop",
    "Dask-",
    "Profile",
    "asyncio_",
    "tqdm",
    "TCP-Executor",
    "pymp-",
    "ThreadPoolExecutor",
)
OF_MULTIPROCESSING = ("resource_tracker", "forkserver")
"""Kept, too, one of each; what a fork server has started is a child of it, and counts."""
LONG = (
    "test_slurm.py",
    "test_connect.py",
    "test_cli.py",
    "test_gpu_cluster.py",
    "test_faults.py",
    "test_environment.py",
    "test_notebooks.py",
    "test_security.py",
    "test_compare.py",
    "test_session.py",
    "test_walks.py",
    "test_cluster.py",
    "test_pbs.py",
    "test_bench.py",
    "test_results.py",
    "test_distributed_buffer.py",
    "test_replay.py",
    "test_notebook_browser.py",
    "test_failing.py",
    "test_gpu_bits.py",
    "test_gpu_failures.py",
    "test_gpu_steps.py",
    "test_gpu_bench.py",
    "test_house.py",
    "test_torchrun.py",
    "test_checkpoint_loader.py",
    "test_run_states.py",
    "test_readme.py",
    "test_training_loop.py",
    "test_onnx_export.py",
    "test_runs.py",
    "test_files_in_runs.py",
    "test_doctor.py",
    "test_checkpoint_writer.py",
    "test_html_report.py",
    "test_reservoir.py",
    "test_children.py",
    "test_reporter.py",
    "test_acceptance.py",
    "test_run_connection.py",
    "test_handle.py",
    "test_endurance.py",
)
"""Files that take longest, and are begun first: else one would keep one process busy alone at the end.
Those that mostly wait for processes stand beside those that compute, so that both cores have work. The tests
of all other files are `fast`."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand files out in order of collection, not those of most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import files of which `-m fast` takes nothing: every process of pytest-xdist would."""
    return True if config.option.markexpr == "fast" and collection_path.name in LONG else None


@pytest.hookimpl(tryfirst=True)  # before `-m fast` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays."""
    for item in items:
        if item.path.name not in LONG and item.get_closest_marker("endurance") is None:
            item.add_marker("fast")
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def _threads() -> set[threading.Thread]:
    return {
        t
        for t in threading.enumerate()
        if not t.name.startswith(OF_LIBRARIES) and "tqdm" not in type(t).__module__
    }


def _has_children() -> bool:
    """Maybe not, where True. psutil looks at every process of the machine, thrice for each test."""
    said = []
    for each in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that has ended since
            said.append(each.read_text())
    return not said or any(said)


def _processes(known: frozenset[psutil.Process] = frozenset()) -> set[psutil.Process]:
    """Children of this process; not those of the `known`, which replace workers that are killed."""
    this, children = psutil.Process(), set()
    for process in this.children(recursive=True) if _has_children() else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            words, parent = " ".join(process.cmdline()), process.parent()
            kept = parent == this and any(helper in words for helper in OF_MULTIPROCESSING)
            if not kept and parent not in known:
                children.add(process)
    return children


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As in a worker: two ranks on two cores must not fight for them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def leaves_nothing_behind():
    """Fail a test after which a thread or a child process of it still lives."""
    threads, processes = _threads(), frozenset(_processes())
    yield
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and (_threads() - threads or _processes(processes) - processes):
        time.sleep(0.05)
    assert not _threads() - threads
    assert not _processes(processes) - processes


@pytest.fixture
def run(tmp_path):
    """A new run folder, in which nothing has happened yet."""
    return RunFolder(tmp_path / "run").create()


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} ranks".format)
def pool(request, tmp_path_factory):
    """Real ranks, each in a process of its own, shared by the tests of a module."""
    from ranks import RankPool

    ranks = RankPool(request.param, tmp_path_factory.mktemp("pool"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """Keys of clusters go into a folder of the tests, not of the person who runs them."""
    patch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("home")
    patch.setenv("REHEARSAL_KIT_HOME", str(home))
    yield home
    left = list((home / "clusters").glob("*")) if (home / "clusters").exists() else []
    patch.undo()
    assert not left, f"cluster folders left behind: {left}"
