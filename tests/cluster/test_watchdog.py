"""Which rank is said to have ended a generation: the one that took the others with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.base.settings import Recovery
from rehearsal_kit.cluster.protocol import HostStatus
from rehearsal_kit.cluster.rank_failure import RankFailure
from rehearsal_kit.cluster.returned_workers import ReturnedWorkers
from rehearsal_kit.cluster.watchdog import GenerationError, Watchdog
from rehearsal_kit.cluster.watched_run import WatchedRun
from rehearsal_kit.record.rank_records import Ended

REMOTE = torch.distributed.DistBackendError(
    "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
)
ABORTED = RuntimeError("NCCL communicator was aborted on rank 0.")
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB"
MEMORY = torch.OutOfMemoryError(f"{SAID}.")


def failed(error, *, at):
    failure = RankFailure.of(error, card="", in_force=None)
    return HostStatus(
        alive=False, generation=1, training=True, outcome="failed", failed_at=at,
        error=failure.error, fatal=failure.fatal, consequence=failure.consequence,
    )  # fmt: skip


def judged(*statuses, present=None, now=100.0):
    watchdog = Watchdog(1, ranks=len(statuses), recovery=Recovery(stall_s=30, wait_s=60), now=now)
    return watchdog.outcome(statuses, present or [True] * len(statuses), now)


@pytest.mark.parametrize("consequence", [REMOTE, ABORTED])
def test_the_cause_is_named_also_where_what_followed_was_told_first(consequence):
    with pytest.raises(GenerationError, match=r"^rank 1: .*out of memory") as found:
        judged(failed(consequence, at=1.0), failed(MEMORY, at=2.0))
    assert found.value.fatal


def test_a_setting_that_holds_the_words_of_a_broken_connection_ends_the_run_for_good():
    setting = SettingsError("policy is 'Connection refused'; it must be one of 'quotas', 'fifo'.")
    with pytest.raises(GenerationError, match=r"^rank 1: policy is 'Connection refused'") as found:
        judged(failed(REMOTE, at=1.0), failed(setting, at=2.0))
    assert found.value.fatal


def test_who_only_heard_of_it_is_no_cause_and_its_own_end_is_no_loss():
    """On a GPU its process has ended by itself; that of the rank that was killed has as well."""
    running = HostStatus(alive=True, generation=1, training=True)
    assert judged(failed(REMOTE, at=1.0), running, present=[False, True]) == ""  # it is looked for
    with pytest.raises(GenerationError, match="worker of rank 1 is gone"):
        judged(failed(REMOTE, at=1.0), None, present=[False, False])


def run():
    return WatchedRun(
        **dict.fromkeys(("order", "folder", "lease", "acceptance", "ledger"), SimpleNamespace()),
        generation=2,
        ranks=2,
        returned=ReturnedWorkers(1.0),
    )


def test_what_a_rank_has_told_counts_once_its_process_is_gone():
    watched = run()
    late = Ended(rank=0, step=3, outcome="failed", error="late", time=1.0, generation=1)
    watched.hear(late)
    watched.hear(
        Ended(rank=1, step=4, outcome="failed", error=SAID, time=2.0, generation=2, fatal=True, device="")
    )
    new = HostStatus(alive=False)  # its nanny has started another process
    living = HostStatus(alive=True, generation=2)
    statuses = watched.told([living, new])
    assert statuses[0] is living
    assert (statuses[1].error, statuses[1].fatal, statuses[1].step) == (SAID, True, 4)
    assert watched.told([None, None])[0] is None


def test_a_card_is_named_when_it_has_failed_twice_in_a_row_and_no_other():
    watched = run()
    card, other = "GPU-5 (H100)", "GPU-6 (H100)"
    said = [
        watched.failed(GenerationError("x", device=device))[0] for device in (card, other, "", other, other)
    ]
    assert said[:4] == ["x"] * 4
    assert said[4].startswith(f"x; {other} has failed twice in a row: look at `nvidia-smi -q -d ECC`")


def test_two_ranks_on_one_gpu_are_refused_for_good_with_what_to_type():
    text = "NCCL error in: x.hpp:1, invalid usage\nLast error:\nDuplicate GPU detected : rank 1 and rank 0"
    failure = RankFailure.of(RuntimeError(text), card="GPU-5 (H100)", in_force=None)
    assert failure.fatal
    assert not failure.sticky
    assert "rk.start_cluster('cuda') without workers=..." in failure.error
    assert failure.device == ""
