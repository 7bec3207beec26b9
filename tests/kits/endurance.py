"""Fault after fault at random moments from a fixed seed, and what has to be true of all of them."""

from __future__ import annotations

import os

import numpy as np
import psutil
from faultkit import (
    DEADLINE_S,
    RECOVERY,
    RECOVERY_S,
    SLOW,
    Fault,
    kill,
    require_whole,
    session_on,
    step_told,
    summary,
    wait_for,
)

from rehearsal_kit.base.processes import words
from rehearsal_kit.record.records import CheckpointKept


def survive_kills(cluster, expected, folder, *, kills):
    """One run per kill, with one of its ranks killed at a random step."""
    workers = len(cluster.client.scheduler_info(n_workers=-1)["workers"])
    random = np.random.default_rng(7)
    survived = []
    for number in range(kills):
        rank, step = int(random.integers(workers)), int(random.integers(5, expected.steps * 3 // 4))
        with session_on(cluster, folder / f"run-{number}") as session:
            session.start()
            wait_for(lambda: step_told(session) >= step)  # noqa: B023 - waited for before the next
            survived.append(kill(session, rank))
            assert session.wait(DEADLINE_S) == "finished"
            require_whole(session, expected, restarts=1, reason="rank|worker")
            writing = max(kept.seconds for kept in session.timeline.records(CheckpointKept))
        # One interval, and until the next one is whole on disk.
        assert survived[-1].age_s < RECOVERY.checkpoint_s + 2 * writing + SLOW
        assert survived[-1].recovery_s < RECOVERY_S
    print(f"\n{kills} kills of one of {workers} workers:")
    print(f"  seconds to the first new step: {summary([each.recovery_s for each in survived])}")
    print(f"  steps repeated: {summary([each.repeated for each in survived])}")
    print(f"  seconds since the checkpoint: {summary([each.age_s for each in survived])}")


def soak(cluster, expected, folder, *, generations, kinds=None):
    """Runs with a fault each. Descriptors, threads and memory of the processes that live on stay flat.

    kinds: of fault, in turns; by default at random.
    """
    random = np.random.default_rng(11)
    used = {process: usage(process) for process in cluster.processes()[1:]}
    number = done = 0
    while done < generations:
        kind = kinds[number % len(kinds)] if kinds else str(random.choice(["raise", "kill", "sleep"]))
        fault = Fault(
            kind=kind,
            marker=str(folder / f"marker-{number}"),
            rank=int(random.integers(2)),
            forward=int(random.integers(5, 100)),
            seconds=1.0 if kind == "sleep" else 0.0,
        )
        with session_on(cluster, folder / f"run-{number}", fault) as session:
            session.start()
            assert session.wait(DEADLINE_S) == "finished"
            restarts = int(kind != "sleep")
            require_whole(session, expected, restarts=restarts, reason="rank|worker")
        number, done = number + 1, done + 1 + restarts
    print(f"\n{done} generations; descriptors, threads, MiB of the processes that lived through them:")
    for process in cluster.processes()[1:]:
        if process in used:
            first = used[process]
            # What ended with the last generation may take a moment to be let go of.
            wait_for(lambda: usage(process)[0] <= first[0] + 8, timeout_s=10)  # noqa: B023
            last = usage(process)
            print(f"  {process.pid}: {first} -> {last}")
            assert last[1] <= first[1] + 8
            assert last[2] <= first[2] + 40 + 0.5 * done
    known = set(cluster.client.run(os.getpid).values())
    (server,) = [
        p for p in cluster.processes()[1:] if "forkserver" in " ".join(words(p)) and p.pid not in known
    ]
    assert {process.pid for process in server.children()} == known


def usage(process: psutil.Process) -> tuple[int, int, float]:
    """Open files, threads and MiB of resident memory."""
    return process.num_fds(), process.num_threads(), round(process.memory_info().rss / 2**20, 1)
