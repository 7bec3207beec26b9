"""From a shard through a step into the buffer and back: the host waits for the device nowhere on that way.

On torch's device "meta", which stands for a GPU: what lies there cannot be read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from waiting import NoWaiting, place

from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.base.settings import Rehearsal, Training
from rehearsal_kit.buffer.distributed_buffer import DistributedBuffer
from rehearsal_kit.buffer.exchange import GroupExchange
from rehearsal_kit.buffer.row_layout import RowLayout
from rehearsal_kit.buffer.staging import Staging
from rehearsal_kit.data.shard_room import ShardRoom
from rehearsal_kit.data.task_loader import TaskLoader
from rehearsal_kit.data.training_shard import AS_READ, ON_DEVICE, PINNED, TrainingShard
from rehearsal_kit.learning.forward_pass import ForwardPass
from rehearsal_kit.learning.gradient_buckets import GradientBuckets
from rehearsal_kit.learning.joint_step import JointStep
from rehearsal_kit.learning.learner import Learner
from rehearsal_kit.learning.mini_batch import MiniBatch
from rehearsal_kit.learning.networks.convnet import ConvNet
from rehearsal_kit.learning.stored_outputs import (
    NO_MODEL,
    ages,
    disowning,
    for_layout,
    named_halves,
    with_outputs,
)
from rehearsal_kit.learning.strategies.dark import DERpp, DERppACE
from rehearsal_kit.learning.strategies.replay import ER

ALONE = ProcessGroups(0, 1)
MUCH = 10**12
ROOMS = {
    ON_DEVICE: ShardRoom(lambda: MUCH, lambda: 0, known_after=1),
    PINNED: ShardRoom(lambda: 0, lambda: MUCH, known_after=1, pinned_row_bytes=0),
    AS_READ: ShardRoom(lambda: 0, lambda: 0, known_after=1),
}
PINNING = {"base/transfers.py", "data/training_shard.py"}
"""The only files that copy to the device: all that they copy is pinned where there are GPUs."""
CASES = {
    "ER": (ER(), Rehearsal(representatives=3, candidates=2, capacity=12)),
    "reservoir": (ER(), Rehearsal(representatives=3, candidates=2, capacity=12, policy="reservoir")),
    "losses": (ER(), Rehearsal(representatives=3, candidates=2, capacity=12, removal="loss")),
    "DERppACE": (DERppACE(), Rehearsal(representatives=3, candidates=2, capacity=12)),
    "DERpp": (DERpp(), Rehearsal(representatives=3, candidates=2, capacity=12)),
    "DERpp, two draws": (
        DERpp(draws=2),
        Rehearsal(representatives=3, distillation=2, candidates=2, capacity=12, half=("outputs",)),
    ),
}


class Moved(NoWaiting):
    """Counts by file what is copied to the device. Rows that are fetched from there arrive numbered."""

    def __init__(self):
        super().__init__("meta")
        self.to_device = Counter()
        self.to_host = 0
        self.gathers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function._schema.name.partition("::")[2]
        if name == "copy_" and arguments[1].is_meta and not arguments[0].is_meta:
            file = place().partition(":")[0]
            assert (file, arguments[2:]) == ("base/transfers.py", (True,))
            self.to_host += 1
            rows = arguments[0].view(len(arguments[0]), -1)
            rows.copy_(100 * self.to_host + torch.arange(len(rows))[:, None])
            return arguments[0]
        made = super().__torch_dispatch__(function, types, arguments, named)
        self.gathers += name == "index_select"
        came = any(isinstance(each, torch.Tensor) and not each.is_meta for each in arguments)
        if name in ("_to_copy", "copy_") and came and made.is_meta:
            self.to_device[place().partition(":")[0]] += 1
        return made


def fields(count):
    return {
        "image": torch.rand(count, 1, 8, 8),
        "label": torch.arange(count) % 4,
        "sample_id": torch.arange(count),
    }


def joint_step(network):
    """Steps on the device, as a learner takes them there."""
    buckets = GradientBuckets([*network.parameters()], device="meta")
    forward = ForwardPass(network, device="meta", precision="float32")
    return JointStep(network, forward, buckets=buckets, groups=ALONE, asynchronous=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ROOMS)
def test_no_step_waits_for_the_device_from_the_shard_to_the_buffer_and_back(where, case):
    strategy, rehearsal = CASES[case]
    shard = TrainingShard(fields(24), device="meta", group="label", room=ROOMS[where])
    loader = TaskLoader(0, [0], shard, largest=24, epochs=2, batch=4, key=(3, 0), group="label")
    network = ConvNet(classes=4, width=2)
    training = Training(precision="float32")
    signature = Learner(network, training, device="cpu", groups=ALONE).meet(fields(2), "image")
    steps = joint_step(network.to("meta"))
    stored = shard.none
    if strategy.distils:
        stored = with_outputs(stored, signature.no_outputs("cpu"), version=NO_MODEL)
    half = named_halves(rehearsal.half, stored)
    rehearsal = replace(rehearsal, half=half)
    buffer = DistributedBuffer(
        RowLayout.of(stored, half=half), rehearsal, seed=1, exchange=GroupExchange(ALONE), device="meta"
    )
    with buffer:
        for step in range(9):
            with Moved() as moved:
                new, drawn = loader.next(), buffer.advance()
                batch = MiniBatch(new, {}, {})
                if drawn is not None:
                    pairs = zip((drawn.samples, drawn.distillation), drawn.numbers, strict=True)
                    draws = [disowning(*each, [range(2)]) for each in pairs]
                    batch = MiniBatch.augmented(new, *draws, strategy=strategy)
                    ages(batch.compared, step)
                batch = replace(batch, asks_losses=case == "losses")
                summed = steps.of(batch, signature, strategy=strategy, seed=step)
                before = moved.gathers
                kept = for_layout(new, summed.outputs, layout=buffer.layout, version=step)
                buffer.offer(kept, group=loader.groups, losses=summed.replayed, copy=False)
                assert moved.gathers == before + 1
            assert set(moved.to_device) <= PINNING
            assert moved.to_host == 1 + (summed.replayed is not None and case == "losses")
    assert shard.where == where
    assert len(drawn.samples["label"]) == 3


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "lent"])
def test_what_is_offered_to_rows_on_the_device_is_not_fetched(copy):
    """Whoever offers it packs it there at most, and where it is lent not even that."""
    shard = TrainingShard(fields(24), device="meta", group="label", room=ROOMS[ON_DEVICE])
    samples, here = shard.batch(torch.arange(24), slice(0, 8))
    staging = Staging(RowLayout.of(shard.none), "meta")
    with Moved() as moved:
        staging.hand_over_there({**samples, "sample_id": here["sample_id"]}, np.array([1, 5]), copy=copy)
    assert (moved.to_host, moved.gathers) == (0, int(copy))
    assert set(moved.to_device) == ({"base/transfers.py"} if copy else set())
