"""What the card itself can do: the same network and rows without a session, as one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rehearsal_kit.bench.clock import is_cuda, seconds_of
from rehearsal_kit.bench.gpu.cases import Case, Effort
from rehearsal_kit.learning.forward_pass import named_outputs
from rehearsal_kit.learning.signature import targets_of
from rehearsal_kit.learning.strategies.losses import supervised_loss

WARM_UP = 5
"""Steps after which algorithms are chosen and the state of the optimizer is there."""


@dataclass(frozen=True)
class Attainable:
    """Seconds of a step, block by block, and what it takes."""

    eager_s: list[float]
    """Launched kernel by kernel."""
    graph_s: list[float]
    """The same as one CUDA graph; empty on a CPU."""
    parameters: int
    weight_bytes: int
    activation_bytes: int | None
    """What a step holds at its peak beside weights, optimizer and gradients; None on a CPU."""


def attainable(case: Case, device: str, effort: Effort, *, deterministic: bool) -> Attainable:
    """Measure it alone on the device: bfloat16 and channels_last on a card that has them, a fused Adam.

    deterministic: by algorithms that give the same bits each time, as a session's; False: by the fastest.
    """
    step, network = _step_of(case, device)
    flags = {"benchmark": not deterministic, "deterministic": deterministic, "allow_tf32": False}
    with (
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, **flags),
        _on_own_stream(device) as stream,
    ):
        for _ in range(1 if stream is None else WARM_UP):
            step()
        activations = _activations(step, network, device)
        eager = [seconds_of(step, device, calls=effort.calls) for _ in range(effort.rounds)]
        graph: list[float] = []
        if stream is not None:
            replay = _captured(step, stream)
            graph = [seconds_of(replay, device, calls=effort.calls) for _ in range(effort.rounds)]
    parameters = list(network.parameters())
    return Attainable(
        eager,
        graph,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=_bytes_of(network),
        activation_bytes=activations,
    )


def _step_of(case: Case, device: str) -> tuple[Callable[[], None], torch.nn.Module]:
    samples = case.subject.samples(case.rows)
    cuda = is_cuda(device)
    # On CPUs not by channels: there, on some processors, torch 2.13 writes over other memory on the way back.
    lies = torch.channels_last if cuda else torch.contiguous_format
    inputs = samples[case.subject.inputs].to(device, memory_format=lies)
    targets = {n: t.to(device) for n, t in targets_of(samples, case.subject.inputs).items()}
    network = case.subject.build().to(device)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=lies)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True, capturable=cuda)
    # On a CPU a session computes with float32.
    precision = cuda and torch.cuda.is_bf16_supported(including_emulation=False)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=precision):
            outputs = named_outputs(network(inputs), [*targets], count=case.rows)
        supervised_loss({n: t.float() for n, t in outputs.items()}, targets).mean().backward()
        optimizer.step()

    return step, network


@contextlib.contextmanager
def _on_own_stream(device: str) -> Iterator[torch.cuda.Stream | None]:
    """Compute on one stream that is not the default one, from the first step to the capture; None on a CPU.

    Whatever autograd remembers of another stream would end the capture.
    """
    if not is_cuda(device):
        yield None
        return
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.synchronize(device)


def _captured(step: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    # Not "global": between ranks the watchdog of NCCL asks for its events meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()

    def replay() -> None:
        graph.replay()

    return replay


def _activations(step: Callable[[], None], network: torch.nn.Module, device: str) -> int | None:
    if not is_cuda(device):
        return None
    for parameter in network.parameters():
        parameter.grad = None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before - _bytes_of(network)


def _bytes_of(network: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())
