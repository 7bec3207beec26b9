"""Ranks know each other's GPUs before a group is made: NCCL connects only who has a whole one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from ranks import PROCESSES, answers_of

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.base.gradient_backend import gradient_backend
from rehearsal_kit.base.process_groups import Meeting, meet


@pytest.mark.parametrize("share", [False, True])
def test_ranks_that_have_a_gpu_each_are_connected_by_nccl_even_where_sharing_was_allowed(share):
    assert gradient_backend(["GPU-a", "GPU-b", "GPU-c"], share=share) == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        (["GPU-a", "GPU-b", "GPU-a"], "ranks 0, 2 are on the same GPU (GPU-a)"),
        (["GPU-a", "MIG-b", "MIG-c"], "ranks 1, 2 are on MIG slices"),
    ],
)
def test_others_go_over_gloo_with_one_line_of_warning_or_are_refused_in_words(gpus, reason, caplog):
    with pytest.raises(ClusterError) as raised:
        gradient_backend(gpus, share=False)
    assert str(raised.value).startswith(f"{reason}, and NCCL connects only ranks that have a whole GPU each.")
    assert "rk.start_cluster(share_gpus=True)" in str(raised.value)
    assert not caplog.messages
    assert gradient_backend(gpus, share=True) == "gloo"
    assert caplog.messages == [f"{reason}: gradients go over gloo, not NCCL"]


def joins(meeting: Meeting, results) -> None:
    """Refused first; then the same ranks as they share a GPU by wish."""
    with pytest.raises(ClusterError) as raised, meet(meeting):
        pytest.fail("it must not get here")
    shared = replace(meeting, rendezvous=meeting.rendezvous.with_name("shared"), share_gpus=True)
    with meet(shared) as groups:
        total = groups.sum(torch.tensor([1.0 + meeting.rank]))
        results.put((meeting.rank, str(raised.value), dist.get_backend(groups.gradients), total.tolist()))


def test_two_ranks_on_one_gpu_meet_over_gloo_or_both_hear_why_not(tmp_path):
    results = PROCESSES.Queue()
    meetings = [
        Meeting(
            rendezvous=tmp_path / "refused",
            nonce="test",
            rank=rank,
            ranks=2,
            device="cuda:0",
            gpu="GPU-a",
        )
        for rank in range(2)
    ]
    processes = [PROCESSES.Process(target=joins, args=(meeting, results)) for meeting in meetings]
    answers = sorted(answers_of(processes, results))
    assert [rank for rank, *_ in answers] == [0, 1]
    for _, refused, backend, total in answers:
        assert refused.startswith("ranks 0, 1 are on the same GPU (GPU-a), and NCCL connects only")
        assert (backend, total) == ("gloo", [3.0])
