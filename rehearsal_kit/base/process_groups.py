"""The process groups of one generation of ranks, and the few collectives a run needs beside the exchange.

World size 1 needs no process group at all: every collective is then the identity, so that a rank can run
alone in the process of a test.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined] # public, not in __all__

from rehearsal_kit.base.child_processes import variables_set
from rehearsal_kit.base.errors import RankError
from rehearsal_kit.base.gradient_backend import gradient_backend, meet_gpus
from rehearsal_kit.base.nccl_variables import NCCL_VARIABLES
from rehearsal_kit.base.network_interfaces import bound_to


@dataclass(frozen=True)
class ProcessGroups:
    """This rank's number and its process groups; None where the rank is alone.

    Three groups because three threads of control use them: gradients and control belong to the training
    thread, the exchange to the background thread (gloo allows that; two NCCL groups would not). Tensors of
    the host are summed over gloo, also where those of the device go over NCCL. All that ranks ask of each
    other is made of `sum`, `broadcast`, `gather`, `gather_numbers`, `exchange_rows` and `begin_exchange`, so
    ranks that are threads of one process can stand in for processes by overriding these.
    """

    rank: int
    ranks: int
    gradients: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    exchange: dist.ProcessGroup | None = None

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place; the same bits on every rank."""
        if self.gradients is not None:
            dist.all_reduce(values, group=self.gradients)
        return values

    def begin_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to sum over all ranks, in place; what is returned waits for the sum, and must be called.

        All ranks must begin it at the same place among their sums. Over NCCL only the device waits.
        """
        if self.gradients is None:
            total = self.sum(values)
            return lambda: total
        work = dist.all_reduce(values, group=self.gradients, async_op=True)

        def summed() -> torch.Tensor:
            work.wait()
            return values

        return summed

    def broadcast(self, text: str) -> str:
        """The text of rank 0, on every rank. An empty one costs a single message."""
        if self.control is None:
            return text
        payload = torch.frombuffer(bytearray(_bytes(text)), dtype=torch.uint8) if text else torch.empty(0)
        size = torch.tensor([payload.numel()])
        dist.broadcast(size, src=0, group=self.control)
        if not size.item():
            return ""
        received = payload if self.rank == 0 else torch.empty(int(size.item()), dtype=torch.uint8)
        dist.broadcast(received, src=0, group=self.control)
        return _text(received.numpy().tobytes())

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks in order of rank, on every rank."""
        if self.control is None:
            return [text]
        payload = _bytes(text)
        size = torch.tensor([len(payload)])
        sizes = [torch.empty_like(size) for _ in range(self.ranks)]
        dist.all_gather(sizes, size, group=self.control)
        width = max(int(s.item()) for s in sizes)
        if not width:
            return [""] * self.ranks
        padded = torch.frombuffer(bytearray(payload.ljust(width, b" ")), dtype=torch.uint8)
        rows = [torch.empty(width, dtype=torch.uint8) for _ in range(self.ranks)]
        dist.all_gather(rows, padded, group=self.control)
        return [_text(r.numpy().tobytes()[: int(s.item())]) for r, s in zip(rows, sizes, strict=True)]

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self.gather("")

    def first_trouble(self, trouble: str) -> str:
        """What the first rank in trouble says, on every rank; empty where none says anything."""
        return next((text for text in self.gather(trouble) if text), "")

    def where(self, holds: bool) -> list[int]:
        """The ranks on which this holds, on every rank."""
        return [rank for rank, said in enumerate(self.gather("1" if holds else "")) if said]

    def max(self, number: int) -> int:
        """The largest number of any rank, on every rank."""
        return max(int(text) for text in self.gather(str(number)))

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        """The 64-bit integers of all ranks in order of rank, equally many on each; for the exchange."""
        if self.exchange is None:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = [torch.empty_like(mine) for _ in range(self.ranks)]
        dist.all_gather(everyone, mine, group=self.exchange)
        return [row.tolist() for row in everyone]

    def exchange_rows(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> None:
        """Send rows to every rank and fill `incoming` with theirs, both (row, ...) in order of rank.

        sent, received: rows for and from each rank. The caller sees to it that both sides agree: gloo leaves
        garbage, without an error, where an owner sends fewer bytes than its partner expects. A rank that is
        alone keeps its rows and has no need to call this.
        """
        dist.all_to_all_single(
            incoming, outgoing, output_split_sizes=received, input_split_sizes=sent, group=self.exchange
        )

    def carries(self, device: torch.device) -> bool:
        """Whether tensors of this device go to other ranks with the gradients without passing their hosts.

        The same on all ranks. They do not where ranks share a GPU, whose gradients go over gloo.
        """
        if device.type != "cuda" or self.gradients is None:
            return True
        return "nccl" in dist.get_backend_config(self.gradients)

    def begin_exchange(
        self, outgoing: torch.Tensor, incoming: torch.Tensor, *, sent: list[int], received: list[int]
    ) -> Callable[[], object]:
        """Begin what `exchange_rows` does, among the sums of the thread that trains; what is returned waits.

        All ranks must begin it at the same place among their sums. Over NCCL it comes after what the current
        stream has been given, and only the stream that is current waits for it.
        """
        work = dist.all_to_all_single(
            incoming,
            outgoing,
            output_split_sizes=received,
            input_split_sizes=sent,
            group=self.gradients,
            async_op=True,
        )
        waits: Callable[[], object] = work.wait
        return waits


def _bytes(text: str) -> bytes:
    # A file name may be any bytes; those that are no UTF-8 are surrogates, which must not end a vote.
    return text.encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def groups_of_world(timeout_s: float) -> ProcessGroups:
    """Groups beside the process group that the caller has initialised already, as under torchrun.

    Without one (a single process) every collective is the identity. All ranks must call it.
    """
    if not dist.is_initialized():
        return ProcessGroups(rank=0, ranks=1)
    timeout = datetime.timedelta(seconds=timeout_s)
    return ProcessGroups(
        rank=dist.get_rank(),
        ranks=dist.get_world_size(),
        gradients=dist.group.WORLD,
        control=dist.new_group(backend="gloo", timeout=timeout),
        exchange=dist.new_group(backend="gloo", timeout=timeout),
    )


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and how the ranks of one generation meet."""

    rendezvous: Path
    """A file in the private run folder: who cannot read the folder cannot join."""
    nonce: str
    """Known only to those whom the kernel told; every group is checked for it."""
    rank: int
    ranks: int
    timeout_s: float = 60.0
    device: str = "cpu"
    gpu: str = ""
    """UUID of that device; empty on the CPU."""
    share_gpus: bool = False
    """Whether it was asked for that several ranks have one GPU, over gloo."""
    address: str = "127.0.0.1"
    """Address of this machine, on the interface where this rank listens for the others."""


@contextlib.contextmanager
def meet(meeting: Meeting) -> Iterator[ProcessGroups]:
    """Join the others; leave again at the end, also after an error."""
    try:
        yield join(meeting)
    finally:
        leave()


def join(meeting: Meeting) -> ProcessGroups:
    """Meet the others of this generation; RankError if somebody has joined who was not told the nonce.

    `leave` ends it, also where this has failed half way.
    """
    if meeting.ranks == 1:
        return ProcessGroups(rank=0, ranks=1)
    with bound_to(meeting.address), variables_set(NCCL_VARIABLES):
        groups = _join(meeting)
    if set(groups.gather(meeting.nonce)) != {meeting.nonce}:
        raise RankError("a process that the kernel did not start has joined the ranks; the run ends here.")
    return groups


def leave() -> None:
    """Destroy the process groups of this process, if it has any.

    NCCL waits for all that is under way: where another rank has failed, this may never return.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(meeting: Meeting) -> ProcessGroups:
    timeout = datetime.timedelta(seconds=meeting.timeout_s)
    store = PrefixStore(meeting.nonce, FileStore(str(meeting.rendezvous), meeting.ranks))
    backend = "gloo" if meeting.device == "cpu" else _agreed_backend(meeting, store)
    dist.init_process_group(
        backend,
        store=store,
        rank=meeting.rank,
        world_size=meeting.ranks,
        timeout=timeout,
        device_id=None if backend == "gloo" else torch.device(meeting.device),
    )
    return ProcessGroups(
        rank=meeting.rank,
        ranks=meeting.ranks,
        gradients=dist.group.WORLD,
        control=dist.new_group(backend="gloo", timeout=timeout),
        exchange=dist.new_group(backend="gloo", timeout=timeout),
    )


def _agreed_backend(meeting: Meeting, store: PrefixStore) -> str:
    gpus = meet_gpus(store, meeting.gpu, rank=meeting.rank, ranks=meeting.ranks, timeout_s=meeting.timeout_s)
    return gradient_backend(gpus, share=meeting.share_gpus)
