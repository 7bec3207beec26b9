"""What a person is told of the GPUs of a machine: each state of it has its own words, and its own cure."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cli.main import _parser
from rehearsal_kit.cluster.devices import choose_devices
from rehearsal_kit.cluster.gpus import EXTRAS, Surroundings, asked, find_gpus
from rehearsal_kit.cluster.local_cluster import ClusterOrder, Devices
from rehearsal_kit.cluster.other_clusters import words_of_same_gpus
from rehearsal_kit.cluster.probed_gpus import Card, Probe
from rehearsal_kit.cluster.rank_device import device_of, identity_of, why_no_gpu
from rehearsal_kit.cluster.server import ClusterFiles
from rehearsal_kit.cluster.server_process import clusters_folder
from rehearsal_kit.cluster.worker_devices import common_kind

ROOT = Path(__file__).parents[2]
H100 = "NVIDIA H100"
CARD = Card(uuid="GPU-0", name=H100, total_mib=81920)
CUDA = Probe(
    torch="2.13.0+cu130",
    build="13.0",
    names=(H100,),
    uuids=("GPU-0",),
    driver="580.65",
    driver_cuda="13.0",
    cards=(CARD,),
)
NONE = replace(CUDA, names=(), uuids=(), refusal="No CUDA GPUs are available")
CPU = replace(NONE, torch="2.13.0+cpu", build="", refusal="")
INSTALL = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
UNSET = "unset CUDA_VISIBLE_DEVICES, or let it name the GPUs to use, such as 0,1"
OLD = replace(
    NONE, refusal="The NVIDIA driver on your system is too old (found version 12020).", driver="535.1"
)
NO_DRIVER = replace(
    NONE, refusal="Found no NVIDIA driver on your system.", driver="", driver_cuda="", cards=()
)
HELD = replace(CARD, mode="exclusive", holders=("process 7 (python, 2048 MiB)",))


def found(probe, *, devices=("/dev/nvidia0", "/dev/nvidiactl"), **environ):
    return find_gpus(Surroundings(devices=devices, environ=environ), lambda _: probe)


@pytest.mark.parametrize(
    ("probe", "environ", "lack", "cure"),
    [
        (CPU, {}, "this torch (2.13.0+cpu) is a CPU build", INSTALL + "cu130"),
        (
            replace(CPU, driver_cuda="12.4"),
            {},
            "this torch (2.13.0+cpu) is a CPU build",
            INSTALL + "cu126",
        ),
        (
            replace(CPU, driver_cuda=""),
            {},
            "this torch (2.13.0+cpu) is a CPU build",
            "as nvidia-smi shows the CUDA version of the driver: "
            f"{INSTALL}cu126 (CUDA 12) or {INSTALL}cu130 (CUDA 13)",
        ),
        (
            replace(CPU, torch="2.13.0+rocm6.4", rocm="6.4"),
            {},
            "this torch (2.13.0+rocm6.4) is built for ROCm 6.4, and this package knows CUDA alone",
            INSTALL + "cu130",
        ),
        (
            replace(OLD, driver_cuda="12.2"),
            {},
            "the NVIDIA driver (535.1, for CUDA up to 12.2) is too old for this torch, which is built for "
            "CUDA 13.0",
            f"have the driver updated, or {INSTALL}cu126",
        ),
        (
            NO_DRIVER,
            {},
            "torch finds no NVIDIA driver",
            "have it installed or loaded; start a container with --gpus all (docker) or --nv (apptainer)",
        ),
        (NONE, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides all GPUs", UNSET),
        (NONE, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES='-1' hides all GPUs", UNSET),
        (
            NONE,
            {"CUDA_VISIBLE_DEVICES": "7"},
            "CUDA_VISIBLE_DEVICES='7' names none of the GPUs of this machine (1)",
            UNSET,
        ),
        (
            NONE,
            {},
            "torch uses no GPU: No CUDA GPUs are available",
            "look whether nvidia-smi lists the GPUs",
        ),
        (
            replace(NONE, cards=(replace(CARD, sliced=True),)),
            {},
            "NVIDIA H100 is in MIG mode and has no slice",
            "have slices made by nvidia-smi mig -cgi ... -C, or MIG ended by nvidia-smi -mig 0",
        ),
        (
            replace(CUDA, cards=(HELD,)),
            {},
            "GPU 0 (NVIDIA H100) is in compute mode EXCLUSIVE, and process 7 (python, 2048 MiB) has it",
            "wait until it is free, or have it shared again: nvidia-smi -c DEFAULT",
        ),
        (
            replace(CUDA, cards=(replace(CARD, mode="prohibited"),)),
            {},
            "GPU 0 (NVIDIA H100) is in compute mode PROHIBITED",
            "wait until it is free, or have it shared again: nvidia-smi -c DEFAULT",
        ),
    ],
)
def test_why_no_gpu_can_be_used_and_what_helps(probe, environ, lack, cure):
    told = found(probe, **environ)
    assert (told.usable, told.lack, told.cure) == ((), lack, cure)
    with pytest.raises(ClusterError) as raised:
        choose_devices("cuda", find=lambda: told)
    assert str(raised.value) == f"no GPU can be used: {lack}; {cure}."
    assert choose_devices("auto", find=lambda: told).reason == f"{lack}; {cure}"


def test_without_a_device_file_nobody_is_asked_and_under_wsl_there_is_another_one():
    told = find_gpus(Surroundings(devices=()), lambda _: pytest.fail("it was asked"))
    assert (told.lack, told.cure) == ("this machine shows no NVIDIA device", "")
    wsl = ("/dev/dxg",)
    assert [gpu.name for gpu in found(CUDA, devices=wsl).usable] == [H100]
    told = found(NO_DRIVER, devices=wsl)
    assert told.lack == "WSL has a device, but torch finds no NVIDIA driver"
    assert told.cure == "install NVIDIA's driver in Windows (none inside WSL), then type wsl --update there"


@pytest.mark.parametrize(
    ("program", "lack", "cure"),
    [
        (
            "import time; time.sleep(60)",
            "torch has not told its devices in 0.5 s",
            "look whether nvidia-smi answers; the driver may hang",
        ),
        ("raise SystemExit('no room')", "torch could not be asked: no room", "install torch again"),
        ("import os; os._exit(9)", "torch could not be asked: exit status 9", "install torch again"),
    ],
)
def test_a_probe_that_hangs_or_dies_is_no_gpu_and_stops_nobody(program, lack, cure):
    def ask(environ):
        return asked(environ, timeout_s=0.5 if "sleep" in program else 60, program=program)

    told = find_gpus(Surroundings(devices=("/dev/nvidia0",), environ=os.environ), ask)
    assert (told.lack, told.cure) == (lack, cure)


def test_the_probe_is_asked_in_a_process_that_counts_gpus_as_nvml_does():
    told = []
    find_gpus(
        Surroundings(devices=("/dev/nvidia0",), environ={}), lambda environ: told.append(environ) or NONE
    )
    find_gpus(
        Surroundings(devices=("/dev/nvidia0",), environ={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}),
        lambda environ: told.append(environ) or NONE,
    )
    assert [each["CUDA_DEVICE_ORDER"] for each in told] == ["PCI_BUS_ID", "FASTEST_FIRST"]


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ({}, ""),
        (
            {"dask_cuda_lack": "not installed"},
            "dask-cuda is not installed: pip install 'rehearsal-kit[cuda13]'",
        ),
        (
            {"dask_cuda_lack": "not installed", "build": "12.6"},
            "dask-cuda is not installed: pip install 'rehearsal-kit[cuda12]'",
        ),
        ({"dask_cuda_lack": "not installed", "build": "11.8"}, "there is no dask-cuda for CUDA 11"),
        (
            {"dask_cuda_lack": "ImportError: libcudart.so.13"},
            "dask-cuda cannot be imported (ImportError: libcudart.so.13): "
            "pip install 'rehearsal-kit[cuda13]'",
        ),
        (
            {"nvml_lack": "NVMLError_LibraryNotFound: NVML Shared Library Not Found"},
            "dask-cuda needs NVML, which does not answer (NVMLError_LibraryNotFound: NVML Shared Library Not "
            "Found); a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        ),
    ],
)
def test_where_dask_cuda_cannot_make_the_workers_we_do_and_say_so(change, plain):
    told = found(replace(CUDA, **change))
    assert (told.plain, told.lack) == (plain, "")
    chosen = choose_devices("auto", find=lambda: told)
    assert (chosen.kind, chosen.plain) == ("cuda", bool(plain))
    assert chosen.reason == "1 CUDA device found" + (
        f"; plain Dask workers, because {plain}" if plain else ""
    )


@pytest.mark.parametrize(
    ("card", "users"),
    [
        (replace(CARD, used_mib=600), ""),  # what the driver keeps
        (replace(CARD, used_mib=20000), "somebody, with 20000 of 81920 MiB"),
        (replace(HELD, mode="shared"), "process 7 (python, 2048 MiB)"),
    ],
)
def test_a_gpu_that_is_in_use_is_told_with_who_uses_it(card, users):
    told = found(replace(CUDA, cards=(card,)))
    assert [gpu.users for gpu in told.usable] == [users]
    warning = choose_devices("auto", find=lambda: told).warning
    expected = (
        f"GPU 0 (NVIDIA H100) is in use by {users}; training there is slower and may run out of memory;"
    )
    assert warning.startswith(expected) if users else warning == ""


def test_of_several_gpus_one_that_another_process_has_for_itself_is_passed_over():
    two = replace(
        CUDA, names=(H100, H100), uuids=("GPU-0", "GPU-1"), cards=(HELD, replace(CARD, uuid="GPU-1"))
    )
    assert choose_devices("auto", find=lambda: found(two)).gpus == ("1",)
    chosen = choose_devices("auto", find=lambda: found(two, CUDA_VISIBLE_DEVICES="GPU-0, GPU-,9"))
    assert chosen.gpus == ("GPU-1",)


def test_gpus_of_another_cluster_of_ours_are_told_with_its_name(tmp_path, monkeypatch):
    """Its workers hold nothing there before their first step, so NVML sees nobody."""
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path))
    wanted = Devices(kind="cuda", reason="", workers=1, gpus=("0",), uuids=("GPU-0",))
    other = ClusterFiles(folder=clusters_folder() / "beef")
    other.folder.mkdir(mode=0o700)
    other.address.touch()
    assert words_of_same_gpus(wanted) == ""  # it does not tell
    other.order.write_text(json.dumps(asdict(ClusterOrder(devices=wanted, interface="lo", idle_timeout_s=1))))
    said = words_of_same_gpus(wanted)
    assert said.startswith("cluster beef, which still runs, has the same GPUs")
    assert said.endswith("rehearsal-kit stop beef")
    assert words_of_same_gpus(replace(wanted, uuids=("GPU-1",))) == ""
    assert words_of_same_gpus(replace(wanted, uuids=("",))) == ""


def test_a_gpu_for_one_process_is_not_shared():
    told = found(replace(CUDA, cards=(replace(CARD, mode="exclusive"),)))
    with pytest.raises(
        ClusterError, match="workers is 2, but here is 1 CUDA device in compute mode EXCLUSIVE"
    ):
        choose_devices("auto", workers=2, share_gpus=True, find=lambda: told)


def test_an_extra_that_is_named_is_one_of_the_package_with_the_dask_cuda_of_that_version():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for major, extra in EXTRAS.items():
        assert any(f"dask-cuda[cu{major}]" in need for need in extras[extra])
    assert {name for name in extras if name.startswith("cuda")} == set(EXTRAS.values())
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{extra}`" in readme for extra in EXTRAS.values())


# What a rank does with what it was told -------------------------------------------------------------------


def test_a_rank_obeys_whatever_it_may_see(monkeypatch):
    assert device_of("cpu") == "cpu"
    assert identity_of("cpu") == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("cpu") == "cpu"
    assert device_of("cuda") == "cuda:0"


def test_a_rank_that_cannot_obey_says_why():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ClusterError, match=r"this run trains on GPUs, but a worker on .* has none: "):
        device_of("cuda")


def test_why_torch_uses_no_gpu_in_this_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_gpu() == "CUDA_VISIBLE_DEVICES='' hides all GPUs"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert why_no_gpu() == f"its torch ({torch.__version__}) is not built for CUDA"


# Clusters that somebody else started ----------------------------------------------------------------------


def test_workers_of_another_kind_are_refused_by_name():
    gpu, other = ("a on n1", True, ""), ("b on n1", True, "")
    cpu = ("c on n2", False, "its torch (2.13.0+cpu) is not built for CUDA")
    assert common_kind([gpu, other]) == "cuda"
    assert common_kind([cpu]) == "cpu"
    with pytest.raises(
        ClusterError, match=r"workers a on n1, b on n1 have a GPU, but c on n2 has none \(its torch"
    ):
        common_kind([cpu, other, gpu])
    with pytest.raises(
        ClusterError, match=r"worker c on n2 was started by `dask cuda worker`, but has no GPU: its"
    ):
        common_kind([gpu, (cpu[0], True, cpu[2])])


# What we ship ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["demo"], ["compare", "--stream", "beamline"]], ids=lambda words: words[0]
)
def test_a_command_asks_for_no_number_of_workers_unless_a_person_does(command):
    """Two of them would not start on a machine with one GPU."""
    asked_for = _parser(command).parse_args(command)
    assert (asked_for.workers, asked_for.share_gpus) == (None, False)
    wanted = _parser(command).parse_args([*command, "--workers", "2", "--share-gpus"])
    assert (wanted.workers, wanted.share_gpus) == (2, True)


@pytest.mark.parametrize("path", [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "README.md"])
def test_nor_do_notebooks_and_readme(path):
    called = re.findall(r"start_cluster\((.*?)\)", path.read_text())
    assert called
    assert not [arguments for arguments in called if "workers" in arguments]
