"""Texts that people were shown, and what each of them means for the rank on which it came."""
# ruff: noqa: E501

from __future__ import annotations

import pytest
import torch

from rehearsal_kit.base.errors import OtherRankError, RankError, SettingsError
from rehearsal_kit.base.failure_kinds import (
    Kind,
    memory_held,
    raise_of_device,
    shortened,
    sort_of,
    sort_of_text,
)

NCCL = "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/"
WRAPPED = (
    "rank 0 could not exchange samples at step 7: {}. Another rank has died, has failed, or takes longer than "
    "the time-out."
)
TEXTS = {
    Kind.OWN: [
        "",
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3 and 4x2) (forward, /home/me/gloo.py:3)",
        "ValueError: the connection of layer 3 is missing",
        "RuntimeError: CUDA error: invalid configuration argument",
        "RuntimeError: CUDA driver error: invalid argument",
        "RuntimeError: CUDA error: too many resources requested for launch",
        "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a "
        "non-contiguous input.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm( handle, opa, opb, m, "
        "n, k, &alpha, a, lda, b, ldb, &beta, c, ldc)`",
        "a process that the kernel did not start has joined the ranks; the run ends here.",
    ],
    Kind.CONSEQUENCE: [
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
        "[127.0.0.1]:47110",
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
        "180000ms for recv operation to complete",
        "RuntimeError: Application timeout caused pair closure",
        "torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did "
        "the remote server shutdown or crash?",
        "torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
        "torch.distributed.DistStoreError: wait timeout after 60000ms, keys: /nonce/default_pg/0//cuda//0",
        "RuntimeError: NCCL communicator was aborted on rank 2.  Original reason for failure was: [Rank 2] "
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=10, OpType=BROADCAST, "
        "Timeout(ms)=1800000) ran for 1805457 milliseconds before timing out.",
        "[Rank 12] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2070, OpType=REDUCE, "
        "NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600067 milliseconds before timing out.",
        f"{NCCL}NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
        "prematurely.\nLast error:\nsocketProgressOpt: Call to recv from 172.16.0.4<33759> failed : "
        "Connection reset by peer",
        f"{NCCL}ProcessGroupNCCL.cpp:1275, internal error, NCCL version 2.14.3\nncclInternalError: Internal "
        "check failed.\nLast error:\nNet : Connection closed by remote peer user<50260>",
        WRAPPED.format("[pair.cc:547] Connection closed by peer [10.0.0.2]:4711"),
    ],
    Kind.STICKY: [
        "torch.AcceleratorError: CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in "
        "https://docs.nvidia.com/cuda/ for more information.",
        "RuntimeError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
        "asynchronously reported at some other API call, so the stacktrace below might be incorrect.",
        "RuntimeError: CUDA error: uncorrectable ECC error encountered\nCompile with `TORCH_USE_CUDA_DSA` to "
        "enable device-side assertions.",
        "RuntimeError: CUDA error: unspecified launch failure",
        "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa)`",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "RuntimeError: cuFFT error: CUFFT_INTERNAL_ERROR",
        f"{NCCL}NCCLUtils.hpp:328, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version "
        "2.26.2\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 700 'an "
        "illegal memory access was encountered'",
        f"{NCCL}ProcessGroupNCCL.cpp:1333, unhandled system error, NCCL version 2.18.6\nncclSystemError: "
        "System call (e.g. socket, malloc) or external library call failed or device error.",
        "[Rank 1] Process group watchdog thread terminated with exception: CUDA error: an illegal memory "
        "access was encountered",
        WRAPPED.format("CUDA error: an illegal memory access was encountered"),
    ],
    Kind.MEMORY: [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of "
        "31.47 GiB of which 12.73 GiB is free.",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.71 GiB (GPU 0; 6.00 GiB total "
        "capacity; 3.49 GiB already allocated; 1.04 GiB free; 3.50 GiB reserved in total by PyTorch)",
        "torch.AcceleratorError: CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in it",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        f"{NCCL}ProcessGroupNCCL.cpp:1331, unhandled cuda error, NCCL version 2.26.2\nncclUnhandledCudaError: "
        "Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
        WRAPPED.format("CUDA out of memory. Tried to allocate 18.00 MiB"),
    ],
    Kind.SETUP: [
        f"{NCCL}ProcessGroupNCCL.cpp:1691, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version "
        "2.19.3\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 2000",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "RuntimeError: No CUDA GPUs are available",
        "AssertionError: Torch not compiled with CUDA enabled",
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    ],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in TEXTS for text in TEXTS[kind]])
def test_a_text_is_sorted_by_what_it_means(kind, text):
    assert sort_of_text(text).kind is kind


CLOSED = "Connection closed by peer [127.0.0.1]:47110"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError(CLOSED), Kind.CONSEQUENCE),
        (torch.distributed.DistNetworkError(CLOSED), Kind.CONSEQUENCE),
        (OtherRankError("rank 1 could not store what it was offered; see its error."), Kind.CONSEQUENCE),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), Kind.STICKY),
        (SettingsError("policy is 'Broken pipe'; it must be one of 'quotas'"), Kind.OWN),
        (RankError(f"Steer took effect at step 3 when it was recorded, but now: {CLOSED}"), Kind.OWN),
        (ConnectionRefusedError(111, "Connection refused", "https://my.database"), Kind.OWN),
        (KeyError("Read timeout"), Kind.OWN),
        (ValueError("CUDA error: unspecified launch failure"), Kind.OWN),
        (AssertionError("Torch not compiled with CUDA enabled"), Kind.OWN),  # not raised by torch
    ],
)
def test_an_error_is_judged_by_its_type_then_by_what_it_says(error, kind):
    assert sort_of(error).kind is kind


def test_an_assertion_of_torch_says_that_its_build_lacks_something():
    if torch.backends.cuda.is_built():
        pytest.skip("this build of torch has CUDA")
    with pytest.raises(AssertionError) as found:
        torch.zeros(1, device="cuda")
    assert sort_of(found.value).kind is Kind.SETUP


def test_who_holds_the_memory_is_read_from_every_way_in_which_torch_has_said_it():
    newest = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which "
        "11.06 MiB is free. Process 4071 has 4.00 GiB memory in use. Including non-PyTorch memory, this process "
        "has 19.60 GiB memory in use. Of the allocated memory 18 GiB is allocated by PyTorch"
    )
    others = "4.0 GiB by others (nvidia-smi shows whom)"
    assert memory_held(newest) == f"19.6 GiB of 23.6 GiB are held by this rank, {others}"
    alone = newest.replace("23.65", "19.62")
    assert memory_held(alone) == "19.6 GiB of 19.6 GiB are held by this rank"
    misspelt = (
        "GPU 0 has a total capacty of 6.00 GiB of which 0 bytes is free. Of the allocated memory 2.93 GiB"
    )
    assert memory_held(misspelt) == "6.0 GiB of 6.0 GiB are held"
    assert memory_held("CUDA error: out of memory") == ""


def test_what_is_for_developers_is_left_out():
    said = (
        "RuntimeError: CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be "
        "asynchronously reported at some other API call, so the stacktrace below might be incorrect.\nFor "
        "debugging consider passing CUDA_LAUNCH_BLOCKING=1.\n (forward, /home/me/net.py:7)"
    )
    assert shortened(said) == "RuntimeError: CUDA error: uncorrectable ECC error encountered"
    assert "dmesg | grep Xid" in sort_of_text(said).advice
    assert shortened("two\nlines.") == "two lines"


def test_only_what_the_device_says_is_raised_again():
    raise_of_device(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    raise_of_device(RuntimeError("Connection closed by peer"))
    memory = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(RuntimeError, match="out of memory"):
        raise_of_device(memory)
    raise_of_device(memory, Kind.STICKY)
    raise_of_device(KeyError("/data/CUDA out of memory.txt"))  # libraries of CUDA raise RuntimeErrors
