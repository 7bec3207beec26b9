"""Loss-aware removal in whole runs: interrupted, on other ranks, rolled back, steered, switched, replayed."""

from __future__ import annotations

import numpy as np
import pytest
from walks import Generation, Walk, broken_promises, carry_out, walk_tasks

from rehearsal_kit.buffer.snapshots import read_shards
from rehearsal_kit.rank.checkpoint_files import find_checkpoints
from rehearsal_kit.record.commands import RollBack, Steer, TakeCheckpoint
from rehearsal_kit.record.ledger import read_ledger


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loss-aware") / "tasks"
    return folder, walk_tasks(folder)


def run(tasks, folder, *generations, policy="quotas", removal="loss", ranks=2):
    """A run of four tasks; what it has learned, and what its checkpoints hold of losses."""
    arrivals = tuple((0, arrived) for arrived in tasks[1][:4])
    first, *others = generations or (Generation(),)
    parts = (Generation((*arrivals, *first.commands), first.ends, ranks=first.ranks), *others)
    walked = carry_out(Walk(ranks, "ER", policy, parts, removal), folder / "run", tasks[0])
    assert broken_promises(walked, folder / "again") == []
    known = {}
    for number, found in find_checkpoints(walked.spec.run.checkpoints).items():
        count = len([*found.folder.glob("buffer-*")])
        parts = [read_shards(found.folder, rank=rank, ranks=count).contents.losses for rank in range(count)]
        known[number] = None if parts[0] is None else np.concatenate(parts)
    return walked.results[-1][0], known, walked


CHECKPOINT = (9, TakeCheckpoint())


@pytest.mark.parametrize(("policy", "ranks"), [("quotas", 1), ("reservoir", 2)])
def test_what_is_replayed_has_losses_in_checkpoints_and_another_run_comes_of_it(
    tasks, tmp_path, policy, ranks
):
    asked = Generation(((0, Steer(batch=1)), (0, Steer(representatives=6)), (15, TakeCheckpoint())))
    by_loss, known, _ = run(tasks, tmp_path / "loss", asked, policy=policy, ranks=ranks)
    assert np.isfinite(known[1]).any()
    random, none, _ = run(tasks, tmp_path / "random", asked, policy=policy, removal="random", ranks=ranks)
    assert random != by_loss
    assert none[1] is None or not np.isfinite(none[1]).any()


def test_ended_and_gone_on_with_it_comes_to_the_same_weights(tasks, tmp_path):
    whole, _, _ = run(tasks, tmp_path / "whole", Generation((CHECKPOINT,)))
    cut, known, _ = run(tasks, tmp_path / "cut", Generation((CHECKPOINT,), ends="interrupted"), Generation())
    assert cut == whole
    assert np.isfinite(known[max(known)]).any()


def test_on_other_ranks_after_a_roll_back_and_under_other_strategies_and_policies_it_keeps_all_promises(
    tasks, tmp_path
):
    before = Generation(
        (CHECKPOINT, (1, Steer(strategy="Incremental")), (2, Steer(strategy="ERACE")), CHECKPOINT),
        ends="interrupted",
        ranks=3,
    )
    after = Generation(
        (
            (0, Steer(policy="fifo")),
            (0, Steer(policy="reservoir")),
            (2, RollBack(checkpoint=2)),
            (1, Steer(capacity=12)),
            (1, TakeCheckpoint()),
        )
    )
    _, known, walked = run(tasks, tmp_path, before, after)
    assert all(np.isfinite(losses).any() for losses in known.values())
    entries = [entry for entry in read_ledger(walked.spec.run.effects) if entry.get("policy")]
    refused = [(entry["policy"], "leaves no choice" in entry.get("refused", "")) for entry in entries]
    assert refused == [("fifo", True), ("reservoir", False)]
