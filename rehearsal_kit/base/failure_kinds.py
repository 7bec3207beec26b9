"""What the texts of CUDA, cuDNN, cuBLAS, NCCL and gloo say of a failure: one table, read from above.

Their errors are RuntimeErrors that only their text tells apart: whether it is this rank's own trouble or
that of another rank which this one only heard of, whether the process can be used any more, and whether the
next one would come to the same. An error of any other type is one of code, data or settings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from rehearsal_kit.base.errors import OtherRankError


class Kind(Enum):
    """What an error means for the rank on which it came, and for the process in which it came."""

    OWN = "own"
    """An error of code, data or settings; the process is as good as before."""
    CONSEQUENCE = "consequence"
    """Another rank has died or failed, and this one could not reach it any more."""
    STICKY = "sticky"
    """The device, its driver or its communicator is broken for this process; a new one may be well."""
    MEMORY = "memory"
    """The device has no memory left; the same step would come to the same."""
    SETUP = "set-up"
    """Devices, driver or build do not go together; every start would come to the same."""


OF_DEVICE = frozenset({Kind.STICKY, Kind.MEMORY, Kind.SETUP})
"""Kinds that no other mini-batch, task or file would have avoided."""


@dataclass(frozen=True)
class Sort:
    """One row of the table."""

    pattern: str
    """A regular expression that finds the text anywhere in what an error says."""
    kind: Kind
    advice: str = ""
    """What helps; empty where the text says all that is known."""


_HARDWARE = (
    "this comes from the card or its driver: `nvidia-smi -q -d ECC` shows its error counters, and "
    "`dmesg | grep Xid` on its machine what the driver has seen"
)
TABLE = (
    Sort(r"(CUDA|HIP) out of memory", Kind.MEMORY),
    Sort(r"(CUDA|HIP)( driver)? error: out of memory|Cuda failure (\d+ )?'out of memory'", Kind.MEMORY),
    Sort(
        r"CU[A-Z]+_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|Triton Error \[CUDA\]: out of memory", Kind.MEMORY
    ),
    Sort(
        r"Duplicate GPU detected",
        Kind.SETUP,
        "two ranks train on one GPU, which NCCL refuses: rk.start_cluster('cuda') without workers=... starts "
        "one for each",
    ),
    Sort(
        r"no kernel image is available|device kernel image is invalid",
        Kind.SETUP,
        "this build of torch has no code for that GPU: `rehearsal-kit doctor` shows both, and the build to "
        "install",
    ),
    Sort(
        r"driver version is insufficient|NVIDIA driver on your system is too old|Found no NVIDIA driver"
        r"|No CUDA GPUs are available|no CUDA-capable device is detected|not compiled with CUDA enabled",
        Kind.SETUP,
        "`rehearsal-kit doctor` says what of driver, build and devices lacks",
    ),
    # A launch or a call that was refused has broken nothing: it is the network's, like any error of its code.
    Sort(
        r"(CUDA|HIP)( driver)? error: (invalid argument|invalid configuration argument|operation not supp"
        r"|too many resources requested for launch)|CUFFT_INVALID_SIZE",
        Kind.OWN,
    ),
    Sort(r"CU[A-Z]+_STATUS_(NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM)", Kind.OWN),
    Sort(
        r"device-side assert triggered",
        Kind.STICKY,
        "mostly an index or a label beyond its range; the same run on rk.start_cluster('cpu') says where",
    ),
    Sort(
        r"(CUDA|HIP) error: (uncorrectable|unspecified launch|hardware stack|unknown error|NVLink"
        r"|Invalid access of peer GPU memory over nvlink)|fallen off the bus|GPU is lost",
        Kind.STICKY,
        _HARDWARE,
    ),
    Sort(
        r"(CUDA|HIP)( driver)? error: |Triton Error \[CUDA\]: |[Cc]uda failure |ncclUnhandledCudaError",
        Kind.STICKY,
    ),
    Sort(r"cuDNN error: |CU(DNN|BLAS|SOLVER|SPARSE|FFT)_STATUS_|cuFFT error: ", Kind.STICKY),
    # Behind those of the device: whoever waits for others is told of its own broken card in the same words.
    Sort(r"Watchdog caught collective operation timeout|NCCL communicator was aborted", Kind.CONSEQUENCE),
    Sort(r"ncclRemoteError|remote process exited", Kind.CONSEQUENCE),
    Sort(
        r"[Cc]onnection (was |is )?(likely )?(closed|reset|refused|timed out|aborted)|[Bb]roken pipe"
        r"|Connection\w*Error",
        Kind.CONSEQUENCE,
    ),
    Sort(
        r"gloo/(transport|rendezvous)|\[gloo\]|[Gg]loo .*(timeout|timed out|failed|error)", Kind.CONSEQUENCE
    ),
    Sort(
        r"Application timeout caused pair closure|Timed out waiting \d+|Timed out after \d+ seconds waiting"
        r"|Timeout waiting for key|[Ww]ait timeout|Socket Timeout|Read timeout",
        Kind.CONSEQUENCE,
    ),
    Sort(r"ncclSystemError|ncclInternalError|NCCL error", Kind.STICKY),
)
"""First the more telling: the first row whose pattern is found says it."""
_OWN, _OTHERS = Sort("", Kind.OWN), Sort("", Kind.CONSEQUENCE)
_TAIL = re.compile(
    r"\s*(Exception raised from |Search for `cuda|CUDA kernel errors might be asynchronously"
    r"|For debugging consider passing CUDA_LAUNCH_BLOCKING|Compile with `TORCH_USE_CUDA_DSA`"
    r"|If reserved but unallocated memory is large).*",
    re.DOTALL,
)
_MEMORY = re.compile(
    r"total capaci?ty of (?P<total>[\d.]+ \w+) of which (?P<free>[\d.]+ \w+) is free"
    r"(.*?this process has (?P<own>[\d.]+ \w+) memory in use)?",
    re.DOTALL,
)
_UNITS = {"bytes": 2.0**-30, "KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0}
_LITTLE_GIB = 0.1
"""What a driver keeps for itself is nobody's to give back."""


def sort_of(error: BaseException) -> Sort:
    """What an error means, by its type, then by what it says; without pattern where no row fits."""
    if isinstance(error, OtherRankError):
        return _OTHERS
    if not isinstance(error, RuntimeError) and not _is_assertion_of_torch(error):
        return _OWN  # a setting, a file or a host may have any name, such as that of a broken connection
    return sort_of_text(f"{type(error).__name__}: {error}")


def sort_of_text(text: str) -> Sort:
    """The first row of the table that fits what a RuntimeError says; one without pattern where none does."""
    return next((sort for sort in TABLE if re.search(sort.pattern, text)), _OWN)


def _is_assertion_of_torch(error: BaseException) -> bool:
    """Whether torch itself found something missing: its build without CUDA says so by an AssertionError."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, AssertionError) and module.partition(".")[0] == "torch"


def raise_of_device(error: BaseException, *kinds: Kind) -> None:
    """Raise an error again that says that the device has failed; for whoever else would go on without it.

    kinds: those that are raised, by default all of `OF_DEVICE`. Libraries of CUDA raise RuntimeErrors: what
    else has such words, as in the name of a file, is an error of network, strategy or data.
    """
    if isinstance(error, RuntimeError) and sort_of(error).kind in (kinds or OF_DEVICE):
        raise error


def shortened(text: str) -> str:
    """What an error of torch says, without what it adds for developers: frames of C++, links, variables."""
    return " ".join(_TAIL.sub("", text).split()).rstrip(". ")


def memory_held(text: str) -> str:
    """Who holds the memory of the device, in words, as torch's error says; empty where it does not."""
    found = _MEMORY.search(text)
    if found is None:
        return ""
    total, free = _gib(found["total"]), _gib(found["free"])
    if found["own"] is None:
        return f"{total - free:.1f} GiB of {total:.1f} GiB are held"
    own = _gib(found["own"])
    others = total - free - own
    by_others = f", {others:.1f} GiB by others (nvidia-smi shows whom)" if others > _LITTLE_GIB else ""
    return f"{own:.1f} GiB of {total:.1f} GiB are held by this rank{by_others}"


def _gib(words: str) -> float:
    number, unit = words.split()
    return float(number) * _UNITS.get(unit, 1.0)
