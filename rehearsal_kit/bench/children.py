"""Work in fresh processes: one alone, or real ranks that meet; none of them outlives the call."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from rehearsal_kit.base.child_processes import holds_fork_server, imports_not_from_here
from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import Meeting, meet
from rehearsal_kit.cluster.rank_device import identity_of
from rehearsal_kit.learning.gpu_arithmetic import set_variables

GRACE_S = 10.0
"""Seconds for a process that has answered to end by itself, and for others to answer after one failed."""

LONGEST_S = 3600.0
"""Without any answer for so long, the processes are ended: no measurement takes a quarter of it."""

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function that can be pickled, and its arguments."""


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns in a fresh process with one torch thread.

    Nothing was imported there before, so that its memory is its own. RehearsalKitError, with the child's
    traceback, if it fails.
    """
    return _together([(work, arguments)], forked=False)[0]


def in_children(
    work: Callable[..., Any], each: Sequence[tuple[Any, ...]], *, say: Callable[[str], None], shared: bool
) -> list[Any]:
    """What `work` returns for each of these arguments, one after the other, in a fresh process each.

    say: is told of each before it begins. shared: all in one process instead, which saves seconds and
    spoils what depends on a fresh one.
    """
    if shared:
        (answers,) = _together([(_one_by_one, (work, each))], forked=True)
        return list(answers)
    results = []
    for number, arguments in enumerate(each, 1):
        say(f"measuring {number} of {len(each)}: {arguments[0]}")
        results.append(in_child(work, *arguments))
    return results


def on_ranks(devices: Sequence[str], work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(groups, *arguments)` returns on each rank, each in a fresh process; in order of rank.

    devices: of each rank, such as "cpu" or "cuda:0"; their number is that of the ranks. RehearsalKitError,
    with the tracebacks of those that failed, if any does.
    """
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="rehearsal-bench-") as folder:  # readable by its owner only
        meetings = [
            Meeting(
                rendezvous=Path(folder) / "rendezvous",
                nonce=nonce,
                rank=rank,
                ranks=len(devices),
                device=device,
            )
            for rank, device in enumerate(devices)
        ]
        forked = all(device == "cpu" for device in devices)
        return _together([(_as_rank, (meeting, work, *arguments)) for meeting in meetings], forked=forked)


def _context(*, forked: bool) -> ForkServerContext | SpawnContext:
    """How processes begin: as copies of one that has imported torch, like workers on CPUs, or by themselves.

    Never from what has used a GPU, which does not survive a fork; nor where the folder for temporary files
    has too long a name for a socket.
    """
    if not forked or not holds_fork_server(tempfile.gettempdir()):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rehearsal_kit.rank.rank_imports", __name__])
    return context


def _together(calls: Sequence[Call], *, forked: bool) -> list[Any]:
    context = _context(forked=forked)
    processes: list[BaseProcess] = []
    answers: dict[Connection, int] = {}
    grace = 0.0
    try:
        for number, call in enumerate(calls):
            receiving, sending = context.Pipe(duplex=False)
            answers[receiving] = number
            with closing(sending):  # the child then holds the only one, so that its end is noticed here
                process: BaseProcess = context.Process(target=_answer, args=(sending, *call), daemon=True)
                with imports_not_from_here():
                    process.start()
            processes.append(process)
        results = _collected(answers, LONGEST_S)
        grace = GRACE_S
    finally:
        for process in processes:
            process.join(grace)
            process.kill()
            process.join()
            process.close()
        for connection in answers:
            connection.close()
    return results


def _collected(answers: dict[Connection, int], longest_s: float) -> list[Any]:
    # After a first failure the others are given a moment: one that only lost its partner may be the first
    # to say so. Then they are ended.
    results: dict[int, Any] = {}
    errors: dict[int, str] = {}
    while len(results) + len(errors) < len(answers):
        silent = [c for c, number in answers.items() if number not in results and number not in errors]
        ready = wait(silent, GRACE_S if errors else longest_s)
        if not ready and not errors:
            raise RehearsalKitError(
                f"{len(silent)} of {len(answers)} measuring processes have not answered for {longest_s:.0f} "
                "s, and were ended; is the machine busy with something else? Try --quick."
            )
        if not ready:
            break
        for connection in ready:
            if isinstance(connection, Connection):
                value, error = _received(connection)
                if error:
                    errors[answers[connection]] = error
                else:
                    results[answers[connection]] = value
    if errors:
        told = "\n".join(f"process {number}: {error}" for number, error in sorted(errors.items()))
        raise RehearsalKitError(f"{len(errors)} of {len(answers)} measuring processes failed.\n{told}")
    return [results[number] for number in range(len(answers))]


def _received(connection: Connection) -> tuple[Any, str]:
    try:
        value, error = connection.recv()
    except EOFError:
        return None, "it ended without an answer. The machine may be out of memory; try --quick."
    return value, error


def _answer(sending: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the parent ends this
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    torch.set_num_threads(1)
    try:
        answer = work(*arguments), ""
    except Exception:
        answer = None, traceback.format_exc()
    sending.send(answer)


def _one_by_one(work: Callable[..., Any], each: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [work(*arguments) for arguments in each]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_rank(meeting: Meeting, work: Callable[..., Any], *arguments: Any) -> Any:
    if meeting.device != "cpu":
        set_variables()
        # NCCL is for ranks on GPUs of their own: without their names all would seem to share one.
        meeting = replace(meeting, gpu=identity_of(meeting.device))
    with meet(meeting) as groups:
        return work(groups, *arguments)
