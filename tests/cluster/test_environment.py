"""What a site, a folder or a stranger leaves around a kernel does not reach the processes that we start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from rehearsal_kit.base.child_processes import child_environment, variables_set
from rehearsal_kit.base.errors import ClusterError, RunFolderError
from rehearsal_kit.base.network_interfaces import bound_to, interface_named, interfaces, is_loopback, strays
from rehearsal_kit.base.processes import Listener
from rehearsal_kit.bench.children import in_child
from rehearsal_kit.cli.lab import open_lab
from rehearsal_kit.cluster.code_folders import offered, open_to_others, take_up

DEADLINE_S = 120
MODULES = ("psutil", "json", "dask", "torch", "sitecustomize", "usercustomize", "multiprocessing", "startup")
BESIDE = """
    import os, sys, time
    import torch

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 2)

        def forward(self, image):
            if self.training:
                time.sleep(0.1)
            return {"label": self.layer(image)}

    def tell():
        return {"variables": dict(os.environ), "path": sys.path, "folder": os.getcwd(),
                "threads": torch.get_num_threads()}

    def see_gpus():
        torch.cuda.is_available = lambda: True  # as it is where the machine has some

    def kept(dask_scheduler):
        runs = dask_scheduler.plugins["rehearsal-kit-coordinator"]._runs.values()
        events = sum(len(dask_scheduler.get_events(run.order.topic)) for run in runs)
        return sum(len(run.order.spec) for run in runs), events
    """
KERNEL = """
    import json, os, sys
    from pathlib import Path
    import torch
    import rehearsal_kit as rk
    from rehearsal_kit.base.processes import listeners
    from rehearsal_kit.record.records import Steps
    from beside import Theirs, kept, see_gpus, tell

    def vectors(count):
        return {"image": torch.randn(count, 6), "label": torch.arange(count) % 2}

    work = Path(sys.argv[1])
    os.environ.update(json.loads(sys.argv[2]))
    os.chdir(sys.argv[3])
    with rk.start_cluster("cpu", workers=2, idle_timeout_s=300) as cluster:
        found = {"said": repr(cluster), "workers": list(cluster.client.run(tell).values())}
        cluster.client.run(see_gpus)
        with rk.Session(cluster, run=work / "run", strategy=rk.ER(), network=Theirs(),
                        training=rk.Training(batch=8, epochs=3, scaling="none"),
                        rehearsal=rk.Rehearsal(representatives=4, candidates=4, capacity=40)) as session:
            session.submit(rk.TensorTask(name="t", inputs="image", group="label", training=vectors(160),
                                         watched=vectors(8), test=vectors(8)))
            session.finish_stream()
            session.start()
            session.until(lambda session: session.timeline.records(Steps), timeout=60)
            found["addresses"] = sorted({each.address for each in listeners(cluster.processes()[1:])})
            found["state"] = session.wait(60)
        found["kept"] = cluster.client.run_on_scheduler(kept)
    print(json.dumps(found))
    """


def hostile(folder: Path, mark: Path) -> Path:
    """A folder of modules that leave a mark when they run, named as those that our processes import."""
    folder.mkdir(mode=0o700)
    for name in MODULES:
        path = folder / name / "__init__.py" if name in ("torch", "dask") else folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(mark / name)!r}, 'w').close()\nraise SystemExit('evil {name}')\n")
    mark.mkdir()
    return folder


def site_variables(evil: Path, home: Path) -> dict[str, str]:
    """What job scripts, modules and other people leave in an environment."""
    beyond = next((each for each in interfaces() if not is_loopback(each.address)), None)
    name, preload = beyond.name if beyond else "nowhere0", str([str(evil / "startup.py")])
    return {
        **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), name),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9"),
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "7"),
        "CUDA_VISIBLE_DEVICES": "0,1",
        "DASK_CONFIG": str(home / ".config" / "dask"),
        "DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT": "2s",
        "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": preload,
        "DASK_DISTRIBUTED__NANNY__PRELOAD": preload,
        "DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION": "4s",
        "HOME": str(home),
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "1",
        "NCCL_COMM_ID": "192.0.2.1:1",
        "PYTHONPATH": str(evil),
        "PYTHONSTARTUP": str(evil / "startup.py"),
        "PYTHONWARNINGS": "error",
        "RANK": "5",
        "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
        "WORLD_SIZE": "9",
    }


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a kernel tells that has started a cluster and a run of two ranks in the middle of all that."""
    work = tmp_path_factory.mktemp("hostile")
    mine, home = work / "mine", work / "home"
    evil = hostile(work / "evil", work / "marks")
    mine.mkdir()
    for name, text in (("beside.py", BESIDE), ("kernel.py", KERNEL)):
        (mine / name).write_text(textwrap.dedent(text))
    config = home / ".config" / "dask" / "site.yaml"
    config.parent.mkdir(parents=True)
    preload = [str(evil / "startup.py")]
    config.write_text(json.dumps({"distributed": {"worker": {"preload": preload}}, "scheduler": "nowhere"}))
    arguments = [str(work), json.dumps(site_variables(evil, home)), str(evil)]
    done = subprocess.run(
        [sys.executable, str(mine / "kernel.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "mine": mine, "marks": work / "marks"}


@pytest.mark.cluster
def test_nothing_foreign_runs_and_the_run_comes_to_its_end(told):
    """On the CPU, which was asked for, although torch sees GPUs in the workers."""
    assert sorted(path.name for path in told["marks"].iterdir()) == []
    assert told["state"] == "finished"


@pytest.mark.cluster
def test_nothing_listens_beyond_loopback_while_two_ranks_train(told):
    assert told["addresses"] == ["127.0.0.1"]


@pytest.mark.cluster
def test_workers_have_our_variables_and_not_those_of_the_site(told):
    for worker in told["workers"]:
        variables = worker["variables"]
        assert not [name for name in variables if name.startswith("DASK_") or "_proxy_" in name]
        assert not {"MASTER_ADDR", "RANK", "WORLD_SIZE", "PYTHONPATH", "NCCL_COMM_ID"} & variables.keys()
        assert variables["GLOO_SOCKET_IFNAME"] == interface_named(None).name
        assert variables["OMP_NUM_THREADS"] == "1"
        assert variables["CUDA_VISIBLE_DEVICES"] == ""  # CPU was asked for
        assert worker["threads"] == 1
        assert variables["HOME"].endswith("home")  # what does not act for us stays
        assert variables["http_proxy"] == "http://127.0.0.1:9"
        assert "127.0.0.1" in variables["no_proxy"]


@pytest.mark.cluster
def test_modules_beside_the_kernel_are_found_last_of_all_and_it_is_said(told):
    for worker in told["workers"]:
        assert worker["path"][-1] == str(told["mine"])
        assert not [
            path
            for path in ("", worker["folder"], str(told["mine"].parent / "evil"))
            if path in worker["path"]
        ]
    assert f"imports from {told['mine']} too" in told["said"]


@pytest.mark.cluster
def test_of_a_run_that_is_over_the_scheduler_keeps_next_to_nothing(told):
    spec, events = told["kept"]
    assert spec == 0  # it had the size of the network
    assert events < 10


def test_the_environment_of_a_child_keeps_what_a_site_needs():
    needed = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/lib",
        "CUDA_VISIBLE_DEVICES": "1",
        "LC_ALL": "C",
        "TMPDIR": "/scratch",
        "CONDA_PREFIX": "/conda",
        "SLURM_JOB_ID": "7",
        "HDF5_PLUGIN_PATH": "/plugins",
        "NCCL_P2P_DISABLE": "1",
        "KMP_DUPLICATE_LIB_OK": "TRUE",
        "REHEARSAL_KIT_HOME": "/keys",
    }
    ours = {
        "GLOO_DEVICE_TRANSPORT",
        "NCCL_NET_PLUGIN",
        "DASK_ROOT_CONFIG",
        "PYTHONHOME",
        "TORCHELASTIC_RUN_ID",
    }
    ours |= {"SSLKEYLOGFILE", "KMP_AFFINITY", "MALLOC_TRIM_THRESHOLD_", "LOCAL_RANK", "PYTHONPYCACHEPREFIX"}
    made = child_environment({**needed, **dict.fromkeys(ours, "theirs")})
    assert needed.items() <= made.items()
    assert not ours & made.keys()
    assert made["PYTHONSAFEPATH"] == "1"
    assert child_environment({"no_proxy": ".site"})["no_proxy"] == ".site,127.0.0.1,localhost,::1"


def test_a_measuring_process_imports_nothing_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(hostile(tmp_path / "evil", tmp_path / "marks"))
    assert in_child(os.getpid) != os.getpid()
    assert not list((tmp_path / "marks").iterdir())
    assert "PYTHONSAFEPATH" not in os.environ


# Folders of modules ---------------------------------------------------------------------------------------


@pytest.fixture
def public():
    """A folder that everybody may look into, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory(prefix="public-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


def test_a_folder_that_others_may_write_to_is_refused(public):
    shared, mine = public / "shared", public / "mine"
    for folder in (shared, mine, shared / "below"):
        folder.mkdir()
    shared.chmod(0o775)
    for folder in (shared, shared / "below"):  # the one below could be replaced by another
        with pytest.raises(ClusterError, match=rf"others may write to {shared} \(mode 775\).*chmod go-w"):
            offered(folder)
    with pytest.raises(ClusterError, match="no folder"):
        offered([mine, public / "nowhere"])
    assert offered([mine]) == (str(mine),)
    assert offered(()) == ()


def test_where_nobody_asked_for_it_such_a_folder_is_left_out(public, monkeypatch):
    shared, mine, known = (public / name for name in ("shared", "mine", "known"))
    for folder in (shared, mine, known):
        folder.mkdir()
    shared.chmod(0o777)
    monkeypatch.setattr(sys, "path", [*sys.path, str(known)])
    before = list(sys.path)
    code = take_up([str(shared), str(mine), str(known)])
    assert (code.used, code.left_out) == ((str(mine),), (str(shared),))
    assert sys.path == [*before, str(mine)]
    assert str(code) == f"imports from {mine} too; not from {shared}, where others may write"


def test_the_folders_of_this_process_are_offered_but_not_that_of_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = str(Path(sys.executable).parent)
    monkeypatch.setattr(sys, "path", ["", commands, str(tmp_path / "none.zip"), *sys.path])
    assert offered(None)[0] == str(tmp_path)
    assert not {commands, str(tmp_path / "none.zip")} & set(offered(None))


def test_what_lies_where_nobody_else_gets_is_safe(public):
    private, sticky = public / "private", public / "sticky"
    for folder in (private / "team", sticky / "mine"):
        folder.mkdir(parents=True)
    (private / "team").chmod(0o775)
    assert "others may write" in open_to_others(private / "team")
    private.chmod(0o700)
    assert open_to_others(private / "team") == ""
    sticky.chmod(0o1777)
    assert open_to_others(sticky / "mine") == ""
    assert "others may write" in open_to_others(sticky)


def test_notebooks_are_not_opened_where_others_could_put_modules_beside_them(public):
    public.chmod(0o777)
    with pytest.raises(RunFolderError, match="Choose a folder of your own, as `rehearsal-kit lab ~/"):
        open_lab(public, browser=False)


# Where ranks listen ---------------------------------------------------------------------------------------


def test_a_port_on_any_other_interface_is_a_stray_and_not_only_one_on_all():
    def found(*addresses):
        return strays(
            [Listener(process=7, address=address, port=9) for address in addresses], interface_named(None)
        )

    assert found("127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1") == []
    assert found("192.0.2.7") == ["process 7 on 192.0.2.7 port 9"]
    assert len(found("0.0.0.0", "::", "fe80::1%eth0", "::ffff:192.0.2.7")) == 4


def test_process_groups_are_bound_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "theirs")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    with bound_to("127.0.0.1"):
        assert os.environ["GLOO_SOCKET_IFNAME"] == interface_named(None).name
        assert os.environ["NCCL_SOCKET_IFNAME"] == f"={interface_named(None).name}"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "theirs"
    assert "NCCL_SOCKET_IFNAME" not in os.environ


def test_variables_that_were_set_for_a_moment_are_what_they_were_whatever_happens_meanwhile(monkeypatch):
    monkeypatch.setenv("THEIRS", "theirs")
    monkeypatch.delenv("NEW", raising=False)
    with variables_set({"THEIRS": "ours", "NEW": "ours"}):
        assert (os.environ["THEIRS"], os.environ["NEW"]) == ("ours", "ours")
        del os.environ["NEW"]  # by code of somebody else
    assert os.environ["THEIRS"] == "theirs"
    assert "NEW" not in os.environ


def test_a_rank_that_listens_elsewhere_all_the_same_does_not_join():
    def listen_everywhere() -> None:
        with bound_to("127.0.0.1"):
            careless.bind(("0.0.0.0", 0))
            careless.listen()

    with socket.socket() as careless, pytest.raises(ClusterError, match=r"only, but .* on 0\.0\.0\.0 port"):
        listen_everywhere()


def test_an_address_that_is_not_of_this_machine_is_refused_with_those_that_are():
    with (
        pytest.raises(ClusterError, match=r"has the address 192\.0\.2\.7.*it has: .*127\.0\.0\.1.*--host"),
        bound_to("192.0.2.7"),
    ):
        pytest.fail("it must not get here")
