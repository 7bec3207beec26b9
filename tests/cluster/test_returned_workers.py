"""When a worker that has come back is taken: not one that comes and goes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.returned_workers import LONGEST_S, STEADY_S, ReturnedWorkers
from rehearsal_kit.cluster.watchdog import GenerationError
from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.cluster.worker_pool import Wanted, WorkerPool


def returned(*, lost: int = 1, wait_s: float = 120.0) -> ReturnedWorkers:
    workers = ReturnedWorkers(wait_s)
    for _ in range(lost):
        workers.lose()
    return workers


def test_a_worker_is_taken_once_it_has_stayed():
    workers = returned()
    assert workers.steady([], 0.0) == 0
    assert workers.steady(["a"], 10.0) == 0
    assert workers.steady(["a"], 9.9 + STEADY_S) == 0
    assert workers.steady(["a", "b"], 10.0 + STEADY_S) == 1
    assert workers.steady(["a", "b"], 10.0 + 2 * STEADY_S) == 2


def test_one_that_was_away_meanwhile_begins_anew():
    workers = returned()
    for now in range(0, 100, 2):  # there at every second look only
        assert workers.steady(["a"], float(now)) == 0
        assert workers.steady([], now + 1.0) == 0


def test_one_that_is_started_again_and_again_is_never_the_same():
    workers = returned()
    assert not any(workers.steady([f"tls://{now}"], float(now)) for now in range(100))


def test_every_loss_doubles_what_the_next_has_to_stay():
    stays = [returned(lost=lost).steady_s for lost in range(1, 5)]
    assert stays == [STEADY_S, 2 * STEADY_S, 4 * STEADY_S, 8 * STEADY_S]
    assert returned(lost=1000).steady_s == LONGEST_S


def test_nobody_has_to_stay_longer_than_a_lost_one_is_waited_for():
    assert returned(wait_s=1.0).steady_s == 1.0


def test_one_that_stays_after_the_run_went_on_without_it_begins_anew():
    workers = returned()
    assert workers.steady(["a"], 0.0) == 0
    workers.lose()
    assert workers.steady(["a"], 20.0) == 0
    assert workers.steady(["a"], 20.0 + 2 * STEADY_S) == 1


# What fails with those that have come back ------------------------------------------------------------


def grown() -> WatchedRun:
    """A run of two workers that went on with one, and then took another one."""
    files = dict.fromkeys(("folder", "lease", "acceptance", "ledger"), SimpleNamespace())
    order = SimpleNamespace(ranks=2)
    run = WatchedRun(**files, order=order, generation=1, ranks=2, returned=ReturnedWorkers(120.0))
    run.assembled(["a", "b"], ["w0", "w1"])
    run.assembled(["a"], ["w0"])
    run.got_to((1, 8))
    run.more = 1
    run.regrouped()
    run.assembled(["a", "c"], ["w0", "w9"])
    return run


@pytest.mark.parametrize("rank", [1, None])
def test_a_run_that_fails_at_once_with_a_worker_that_was_taken_goes_on_without_it(rank):
    run = grown()
    words, fatal = run.failed(GenerationError("rank 1: it has no memory.", fatal=True, rank=rank))
    assert words == "rank 1: it has no memory; the run goes on with the 1 that it had before."
    assert not fatal
    assert run.wanted == Wanted(1, {"w0"}, {"w9"})
    assert run.returned.steady_s == 2 * STEADY_S
    assert run.restarts + 1 == 0  # as if it had not been started again
    run.assembled(["a"], ["w0"])
    assert run.failed(GenerationError("rank 0: y", fatal=True)) == ("rank 0: y", True)
    run.more = 1
    run.regrouped()
    assert run.wanted == Wanted(2, {"w0"})  # it is tried again


def test_a_worker_that_was_taken_stays_where_another_one_is_lost():
    run = grown()
    assert run.failed(GenerationError("rank 0: x", rank=0)) == ("rank 0: x", False)
    assert run.wanted == Wanted(2, {"w0", "w9"})


def test_once_it_has_got_further_a_worker_that_was_taken_is_one_like_all_others():
    run = grown()
    run.got_to((1, 8))  # the checkpoint at which they were started, told late
    assert run.before
    run.got_to((2, 9))
    assert run.failed(GenerationError("rank 1: x", fatal=True)) == ("rank 1: x", True)
    assert run.wanted == Wanted(2, {"w0", "w9"})


class Scheduler:
    """Of workers, by address, with the names that they have."""

    def __init__(self, **names: str) -> None:
        self.workers = {address: SimpleNamespace(name=name, host="h") for address, name in names.items()}

    def rpc(self, address):
        return self

    async def rehearsal_kit_status(self, topic):
        return {"alive": False}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(1, {"w0"}, {"w9"}), ["a"]),
        (Wanted(2, {"w0"}, {"w9"}), ["a"]),  # with one more it would only fail again
        (Wanted(2, {"w0", "w1"}), ["a", "b"]),
        (Wanted(1, {"w8"}, {"w0", "w9"}), ["a"]),  # better than none
    ],
)
def test_workers_to_avoid_are_taken_only_where_there_are_not_enough_others(wanted, found):
    order = SimpleNamespace(topic="t", ranks=2, recovery=Recovery(wait_s=1.0, fewest=1))
    pool = WorkerPool(Scheduler(a="w0", b="w9"))
    assert asyncio.run(pool.assembled(order, wanted, ending=lambda: False)) == found
