"""When a worker that has come back is taken: not one that comes and goes."""

from __future__ import annotations

from rehearsal_kit.cluster.returned_workers import LONGEST_S, STEADY_S, ReturnedWorkers


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
