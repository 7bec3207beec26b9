"""The distributed buffer at 1, 2 and 4 real ranks: whole rows, all ranks, no aliasing, no lost batch."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ranks import on_ranks

from rehearsal_kit.buffer import RowLayout
from rehearsal_kit.errors import RankError
from rehearsal_kit.groups import Groups
from rehearsal_kit.rehearsal import DistributedBuffer, Round
from rehearsal_kit.settings import Rehearsal

STEPS = 40


def batch(rank: int, step: int, size: int) -> dict[str, torch.Tensor]:
    identity = torch.arange(size) + 1000 * step + 1_000_000 * rank
    return {"image": identity.double()[:, None] + torch.tensor([0.0, 0.5]), "sample_id": identity}


def work(step: int, representatives: int = 6, settings: int = 1) -> Round:
    return Round(step=step, representatives=representatives, settings=settings, command=0)


def train(groups: Groups, sizes: list[int], delay_s: float = 0.0) -> list[dict]:
    """A loop as a rank runs it; rank r offers sizes[r] samples at every step."""
    layout = RowLayout.of(batch(0, 0, 0))
    random = np.random.default_rng(groups.rank)
    buffer = DistributedBuffer(
        layout, Rehearsal(representatives=6, candidates=3, capacity=40), seed=9, groups=groups
    )
    seen = []
    for step in range(STEPS):
        drawn = buffer.advance(work(step))
        fresh = batch(groups.rank, step, sizes[groups.rank])
        if delay_s:
            time.sleep(random.uniform(0, delay_s))
        buffer.offer(step, fresh, group=0)
        for tensor in fresh.values():
            tensor.fill_(-1)  # the loader may use its memory again
        if drawn is not None:
            seen.append(
                {
                    "step": step,
                    "owners": drawn.owners.tolist(),
                    **{n: t.tolist() for n, t in drawn.samples.items()},
                }
            )
        else:
            assert step == 0
    buffer.close()
    return seen


@pytest.mark.parametrize(("ranks", "sizes"), [(2, [8, 8]), (2, [8, 0]), (4, [8, 3, 0, 5])])
def test_rows_are_whole_real_and_owned_by_who_stored_them(tmp_path, ranks, sizes):
    for rank, seen in enumerate(on_ranks(ranks, tmp_path, train, sizes)):
        assert len(seen) == STEPS - 1
        for drawn in seen:
            expected = 0 if drawn["step"] == 1 else 6
            assert len(drawn["sample_id"]) == expected, rank
            for identity, image, owner in zip(
                drawn["sample_id"], drawn["image"], drawn["owners"], strict=True
            ):
                assert image == [identity, identity + 0.5]
                assert identity // 1_000_000 == owner
                # Stored at least two steps ago: nothing is drawn that is still in flight.
                assert identity % 1_000_000 // 1000 <= drawn["step"] - 2
            assert len(set(drawn["sample_id"])) == expected


def test_with_two_equal_ranks_about_half_comes_from_the_other(tmp_path):
    for rank, seen in enumerate(on_ranks(2, tmp_path, train, [8, 8])):
        owners = np.concatenate([drawn["owners"] for drawn in seen if drawn["step"] > 1])
        # 38 x 6 draws without replacement: four standard deviations of the binomial are a safe bound.
        assert abs((owners != rank).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(owners))


def test_delays_change_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    prompt = on_ranks(2, tmp_path / "a", train, [8, 5])
    late = on_ranks(2, tmp_path / "b", train, [8, 5], 0.02)
    assert prompt == late


def test_alone_it_works_without_any_process_group():
    seen = train(Groups(0, 1), [8])
    assert len(seen) == STEPS - 1
    assert set(seen[-1]["owners"]) == {0}


def drift(groups: Groups) -> str:
    layout = RowLayout.of(batch(0, 0, 0))
    buffer = DistributedBuffer(layout, Rehearsal(), seed=9, groups=groups)
    buffer.advance(work(0, settings=groups.rank))
    try:
        buffer.advance(work(1))
    except RankError as error:
        return str(error)
    finally:
        buffer.abandon()
    return ""


def test_ranks_that_have_drifted_apart_say_so(tmp_path):
    for said in on_ranks(2, tmp_path, drift):
        assert "drifted apart" in said
        assert "settings" in said
