"""Whether what is installed is enough: one function per check, which returns one finding."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
import webbrowser

import torch
import torch.distributed as dist

from rehearsal_kit.cli.doctor.finding import Finding
from rehearsal_kit.cluster.gpus import find_gpus

PYTHON = (3, 11)
NOTEBOOK = ("jupyterlab", "ipywidgets", "anywidget", "plotly")


def python() -> Finding:
    """The interpreter, and whether it is new enough."""
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    old = sys.version_info < PYTHON
    fix = f"install Python {PYTHON[0]}.{PYTHON[1]} or newer" if old else ""
    return Finding(what="Python", found=found, fix=fix, essential=True)


def torch_build() -> Finding:
    """The build of torch, and whether ranks can talk to each other with it."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    gloo = dist.is_available() and dist.is_gloo_available()
    return Finding(
        what="torch",
        found=f"{torch.__version__}, a {build} build, {'with' if gloo else 'without'} gloo",
        fix="" if gloo else "install a build of torch that has torch.distributed with gloo",
        essential=True,
    )


def nccl() -> Finding:
    """Whether ranks on several GPUs can talk to each other."""
    if not torch.version.cuda:
        return Finding(what="NCCL", found="none in a CPU build; ranks on CPUs talk by gloo")
    if not (dist.is_available() and dist.is_nccl_available()):
        fix = "install a build of torch with NCCL; until then, one GPU: rk.start_cluster('cuda', workers=1)"
        return Finding(what="NCCL", found="none in this build, which several GPUs need", fix=fix)
    return Finding(what="NCCL", found=".".join(map(str, torch.cuda.nccl.version())))


def gpus() -> Finding:
    """The GPUs that a worker each could have, who uses them, and whether dask-cuda works."""
    found = find_gpus()
    if found.lack:
        without = "" if found.cure else "; training goes on CPU processes, dask-cuda is not needed"
        return Finding(what="GPUs", found=f"none to use: {found.lack}{without}", fix=found.cure)
    told = [
        gpu.name
        + (" in compute mode EXCLUSIVE" if gpu.exclusive else "")
        + (f" in use by {gpu.users}" if gpu.users else "")
        for gpu in found.usable
    ]
    how = f"plain workers, because {found.plain}" if found.plain else f"dask-cuda {_version('dask-cuda')}"
    slices = " MIG slices, which NCCL does not connect" if found.sliced else ""
    return Finding(what="GPUs", found=f"{len(told)}{slices}: {', '.join(told)}; {how}")


def dask() -> Finding:
    """Dask and distributed; they go together only in the same version."""
    versions = _version("dask"), _version("distributed")
    same = versions[0] == versions[1]
    return Finding(
        what="Dask",
        found=f"dask {versions[0]}, distributed {versions[1]}",
        fix="" if same else "pip install --upgrade dask distributed, until both have the same version",
        essential=True,
    )


def notebook() -> Finding:
    """What the notebook needs."""
    missing = [name for name in NOTEBOOK if not importlib.util.find_spec(name)]
    return Finding(
        what="notebook",
        found=", ".join(f"{name} {_version(name)}" for name in NOTEBOOK),
        fix=f"pip install {' '.join(missing)}" if missing else "",
        essential=True,
    )


def filters() -> Finding:
    """Whether compressed frames of detectors can be read."""
    there = importlib.util.find_spec("hdf5plugin") is not None
    return Finding(
        what="HDF5 filters",
        found=f"h5py {_version('h5py')}, hdf5plugin {_version('hdf5plugin')}",
        fix=""
        if there
        else "pip install hdf5plugin, for scans that were written with bitshuffle, LZ4 or Blosc",
    )


def browser() -> Finding:
    """Whether JupyterLab can open a browser here."""
    try:
        name = webbrowser.get().name
    except webbrowser.Error:
        return Finding(
            what="browser",
            found="none on this machine",
            fix="rehearsal-kit lab --no-browser, and from your machine: ssh -L PORT:127.0.0.1:PORT this one",
        )
    return Finding(what="browser", found=str(name))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
