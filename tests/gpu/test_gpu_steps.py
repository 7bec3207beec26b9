"""Steps on a GPU, in processes of their own: what they wait for, and that they learn as on a CPU."""

from __future__ import annotations

import statistics

import pytest
import torch
from devicekit import (
    BUFFERS,
    DEVICE,
    KIND,
    evaluations,
    generations,
    layouts,
    mini_batches,
    representatives,
    synchronisations,
)

from rehearsal_kit.bench.children import on_ranks
from rehearsal_kit.buffer.row_placement import NO_ROOM
from rehearsal_kit.buffer.row_placement import ON_DEVICE as LIES_THERE
from rehearsal_kit.data.training_shard import AS_READ, ON_DEVICE, PINNED
from rehearsal_kit.record.records import UNTRAINED

pytestmark = pytest.mark.gpu
SEEDS = (0, 1, 2)


def test_groups_of_nccl_are_made_twice_in_a_process_and_listen_on_loopback_alone(tmp_path):
    (found,) = on_ranks([DEVICE], generations, tmp_path)
    assert len(found) == 2
    for backend, there, here, beyond in found:
        assert ("nccl" in backend) == (KIND == "cuda")
        assert (there, here, beyond) == (1000, 1000, [])


def test_no_step_waits_for_the_device(tmp_path):
    (found,) = on_ranks([DEVICE], synchronisations, tmp_path)
    assert list(found) == ["ER", "DERpp", "AGEM"]
    assert {name: dict(counted.here) for name, counted in found.items()} == {name: {} for name in found}


def test_mini_batches_are_the_same_wherever_a_shard_lies_and_nobody_waits_for_one(tmp_path):
    (found,) = on_ranks([DEVICE], mini_batches, tmp_path)
    usual = ON_DEVICE if KIND == "cuda" else AS_READ
    lies = {ON_DEVICE: ON_DEVICE, PINNED: PINNED, AS_READ: AS_READ, "what there is": usual}
    assert found == {name: (where, True, {}) for name, where in lies.items()}


def test_convolutions_lie_by_channels_and_checkpoints_are_of_their_moment(tmp_path):
    (found,) = on_ranks([DEVICE], layouts, tmp_path)
    knows = KIND == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    # ConvNet is made so; on CPUs nobody needs gradients to lie as parameters do.
    by_channels = {"ConvNet": True, "ResNet": knows, "PtychoNN": knows}
    assert found == {name: (lies, KIND == "cuda" or not lies, True) for name, lies in by_channels.items()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_representatives_and_checkpoints_are_the_same_wherever_the_rows_of_a_buffer_lie(tmp_path, ranks):
    """On several GPUs rows are exchanged by NCCL; the thread that trains waits for no device."""
    if KIND == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} NVIDIA GPUs")
    devices = [f"cuda:{rank}" if KIND == "cuda" else "cpu" for rank in range(ranks)]
    places = dict(zip(BUFFERS, ((0,) * ranks, (LIES_THERE,) * ranks, (NO_ROOM,) * ranks), strict=True))
    for found in on_ranks(devices, representatives, devices, tmp_path):
        drawn, stored = found["as on a CPU"][1:3]
        assert len(drawn) == 4 * 23
        assert found == {name: (places[name], drawn, stored, {}) for name in BUFFERS}


@pytest.mark.parametrize("subject", ["ConvNet", "PtychoNN"])
def test_an_untrained_network_has_the_same_errors_and_metrics_as_on_a_cpu(tmp_path, subject):
    on_cpu, there = both(subject, tmp_path, (0,), epochs=1)
    for one, other in zip(on_cpu[0], there[0], strict=True):
        if one.after == UNTRAINED:
            assert dict(other.errors) == pytest.approx(dict(one.errors), abs=1e-3)
            assert dict(other.metrics) == pytest.approx(dict(one.metrics), abs=1e-2)


def test_what_is_learned_is_as_good_as_on_a_cpu(tmp_path):
    """The final errors of three seeds lie as near to each other on both."""
    on_cpu, there = (
        [error_at_the_end(each) for each in found] for found in both("ConvNet", tmp_path, SEEDS, epochs=4)
    )
    assert max(on_cpu + there) < 0.6  # of four classes: three quarters are wrong by chance
    spread = max(max(on_cpu) - min(on_cpu), 0.05)
    assert abs(statistics.fmean(there) - statistics.fmean(on_cpu)) <= spread, (on_cpu, there)


def both(subject, folder, seeds, *, epochs):
    """The same runs on a CPU and on the device."""
    (folder / "here").mkdir()
    (folder / "there").mkdir()
    on_cpu = on_ranks(["cpu"], evaluations, subject, "cpu", folder / "here", seeds, epochs)
    there = on_ranks([DEVICE], evaluations, subject, DEVICE, folder / "there", seeds, epochs)
    return on_cpu[0], there[0]


def error_at_the_end(told) -> float:
    last = {each.task: sum(each.errors.values()) for each in told}
    return statistics.fmean(last.values())
