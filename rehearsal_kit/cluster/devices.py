"""What the workers of a cluster compute on: chosen when it is started, and obeyed by every rank.

Nothing here needs torch, which the processes that start workers do without: see rank_device.py.
"""

from __future__ import annotations

from collections.abc import Callable

from rehearsal_kit.base.errors import ClusterError, SettingsError
from rehearsal_kit.base.limits import require_integer, require_switch
from rehearsal_kit.cluster.gpus import Gpu, Gpus, find_gpus, names_of
from rehearsal_kit.cluster.local_cluster import Devices

KINDS = ("auto", "cpu", "cuda")
CPU_WORKERS = 2
"""How many there are on a machine without GPUs where nobody says."""


def choose_devices(
    kind: str,
    *,
    workers: int | None = None,
    share_gpus: bool = False,
    find: Callable[[], Gpus] = find_gpus,
) -> Devices:
    """Devices of a cluster of kind "auto", "cpu" or "cuda"; ClusterError where it cannot be as asked for.

    workers: None for one per GPU, one where MIG slices cannot be connected, and two on CPUs.
    share_gpus: whether several workers may have one GPU. find: how to look for GPUs.
    """
    if kind not in KINDS:
        raise ClusterError(f"cluster kind is {kind!r}; it must be 'auto', 'cpu' or 'cuda'.")
    if workers is not None:
        workers = require_integer("workers", workers, low=1, high=1024)
    share_gpus = require_switch("share_gpus", share_gpus)
    if kind == "cpu":
        if share_gpus:
            raise SettingsError("share_gpus is True, but kind is 'cpu'; leave one of them out.")
        return _on_cpu("CPU was asked for", workers)
    found = find()
    if found.lack:
        why = "; ".join(filter(None, (found.lack, found.cure)))
        if kind == "cuda":
            raise ClusterError(f"no GPU can be used: {why}.")
        return _on_cpu(why, workers)
    return _on_gpus(found, workers=workers, share=share_gpus)


def _on_cpu(reason: str, workers: int | None) -> Devices:
    return Devices(kind="cpu", reason=reason, workers=CPU_WORKERS if workers is None else workers)


def _on_gpus(found: Gpus, *, workers: int | None, share: bool) -> Devices:
    usable, count = found.usable, len(found.usable)
    what = "MIG slice" if found.sliced else "CUDA device"
    there, is_ = f"{count} {what}{'s' if count > 1 else ''}", "are" if count > 1 else "is"
    alone = found.sliced and not share
    wanted = (1 if alone else count) if workers is None else workers
    if alone and wanted > 1:
        raise ClusterError(
            f"workers is {wanted}, but NCCL connects no MIG slices ({there} here); give workers=1, or "
            "share_gpus=True, by which gradients go over gloo."
        )
    if wanted > count and not share:
        raise ClusterError(
            f"workers is {wanted}, but here {is_} {there} ({names_of(usable)}), and each worker needs one; "
            f"give at most {count}, or share_gpus=True, by which several workers have one GPU and their "
            "gradients go over gloo, which is slower."
        )
    if wanted > count and any(gpu.exclusive for gpu in usable):
        raise ClusterError(
            f"workers is {wanted}, but here {is_} {there} in compute mode EXCLUSIVE, which one process at a "
            "time can use; have it shared again by nvidia-smi -c DEFAULT."
        )
    shared = wanted > 1 and (wanted > count or found.sliced)
    words = [f"{there} found"]
    words += [f"{wanted} workers share them: gradients go over gloo, not NCCL"] if shared else []
    words += ["one is used: NCCL connects no MIG slices"] if alone and count > 1 else []
    words += [f"plain Dask workers, because {found.plain}"] if found.plain else []
    return Devices(
        kind="cuda",
        reason="; ".join(words),
        workers=wanted,
        gpus=tuple(gpu.visible for gpu in usable[:wanted]),
        uuids=tuple(gpu.uuid for gpu in usable[:wanted]),
        shared=shared,
        plain=bool(found.plain) or shared or found.sliced,
        warning=_warning(usable[:wanted], words[1] if shared else ""),
    )


def _warning(used: tuple[Gpu, ...], sharing: str) -> str:
    busy = [f"GPU {gpu.visible} ({gpu.name}) is in use by {gpu.users}" for gpu in used if gpu.users]
    if busy:
        busy.append("training there is slower and may run out of memory; CUDA_VISIBLE_DEVICES names others")
    return "; ".join([*filter(None, [sharing]), *busy])
