"""The variables of the interpreters that we start: what a site needs stays, what would act for us goes."""

from __future__ import annotations

import contextlib
import os
import site
from collections.abc import Iterator, Mapping

FAMILIES = (
    "DASK_",  # a site's idle timeout would end our scheduler, its preloads would run in it
    "GLOO_",  # where ranks listen is for us to say
    "GOMP_",
    "JUPYTER_",
    "KMP_",
    "MALLOC_",
    "NCCL_",
    "NUMEXPR_",
    "OMP_",
    "PYTHON",  # PYTHONPATH, PYTHONSTARTUP, PYTHONINSPECT, PYTHONWARNINGS ... name code or change its meaning
    "PYTORCH_",
    "TORCH",
)
"""Beginnings of the names of variables that our children do not get."""
NAMES = frozenset({
    "BLIS_NUM_THREADS",
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MKL_DOMAIN_NUM_THREADS",
    "MKL_DYNAMIC",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RANK",
    "SSLKEYLOGFILE",  # the secrets of our TLS would be written there
    "VECLIB_MAXIMUM_THREADS",
    "WORLD_SIZE",
})  # fmt: skip
"""Others that they do not get."""
KEPT = frozenset({
    "KMP_DUPLICATE_LIB_OK",  # some installations do not import without it
    "NCCL_DEBUG",
    "NCCL_P2P_DISABLE",  # some machines hang without these three
    "NCCL_P2P_LEVEL",
    "NCCL_SHM_DISABLE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_HOME",
})  # fmt: skip
"""Variables of `FAMILIES` that our children keep: they belong to the machine, and change neither who
reaches us nor what is computed."""
LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of the name of a folder in which a fork server can have its socket (`man 7 unix`)."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def holds_fork_server(temporary: str) -> bool:
    """Whether a fork server of multiprocessing can have its socket in this folder for temporary files."""
    return len(os.fsencode(temporary)) <= LONGEST_FOLDER


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """These variables without those that change our security or our results, for an interpreter of ours.

    It imports from nowhere but its installation, which is the one of this process: neither the current folder
    nor PYTHONPATH are on its path. What the loader reads (LD_LIBRARY_PATH, LD_PRELOAD) and HDF5's plugins are
    the site's own choice, and stay.
    """
    made = {name: value for name, value in environ.items() if not _is_ours(name)}
    made["PYTHONSAFEPATH"] = "1"
    if site.ENABLE_USER_SITE and site.USER_BASE:
        made["PYTHONUSERBASE"] = site.USER_BASE  # where this process has it, whatever the variable says now
    else:
        made["PYTHONNOUSERSITE"] = "1"
    for name in ("no_proxy", "NO_PROXY"):
        made[name] = ",".join(filter(None, (environ.get(name, ""), *LOOPBACK)))
    return made


@contextlib.contextmanager
def imports_not_from_here() -> Iterator[None]:
    """Have an interpreter that is started meanwhile find no modules in the current folder.

    For those that multiprocessing starts: it takes neither variables nor options for them.
    """
    with variables_set({"PYTHONSAFEPATH": "1"}):
        yield


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables in the environment of this process meanwhile, and then what was there before.

    Only for what can be told in no other way: all threads of the process see them.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # whoever ran meanwhile may have removed it
            else:
                os.environ[name] = value


def _is_ours(name: str) -> bool:
    return name not in KEPT and (name.startswith(FAMILIES) or name in NAMES)
