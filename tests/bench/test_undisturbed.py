"""Whether training goes on as fast beside something else is measured only where that something happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rehearsal_kit.base.errors import RehearsalKitError
from rehearsal_kit.base.process_groups import ProcessGroups
from rehearsal_kit.bench.run import undisturbed_ranks
from rehearsal_kit.bench.run.undisturbed import QUICK, Undisturbed
from rehearsal_kit.bench.run.undisturbed_ranks import (
    ARRIVAL,
    CHECKPOINT,
    NOTHING,
    PREVIEWS,
    PROGRAM,
    ROUND,
    Block,
    Measurement,
)
from rehearsal_kit.rank import previewer
from rehearsal_kit.rank.previewer import Previewer


def no_preview(monkeypatch):
    monkeypatch.setattr(Previewer, "refresh", lambda self, newest, step: None)


def a_preview_that_cannot_be_made(monkeypatch):
    monkeypatch.setattr(previewer, "_preview", lambda *_, **__: 1 / 0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (no_preview, "1 s were not enough for previews"),
        (a_preview_that_cannot_be_made, "has failed: that of task 0 cannot be made: ZeroDivisionError"),
    ],
)
def test_beside_previews_that_never_come_nothing_is_measured(tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(undisturbed_ranks, "ROUND", (PREVIEWS,))
    monkeypatch.setattr(undisturbed_ranks, "LONGEST_S", 1.0)
    fault(monkeypatch)
    turns = replace(QUICK, folder=tmp_path)
    undisturbed_ranks.lay_out(turns, 1)
    with pytest.raises(RehearsalKitError, match=said):
        undisturbed_ranks.measure_undisturbed(ProcessGroups(0, 1), turns)


def test_a_ratio_is_to_the_blocks_before_and_after_and_the_verdict_is_honest():
    def found(*rates: float) -> Undisturbed:
        kinds = [*ROUND * QUICK.rounds, NOTHING]
        blocks = tuple(Block(kind, 10, 10 / rate) for kind, rate in zip(kinds, rates, strict=True))
        return Undisturbed(QUICK, 2, Measurement(blocks, 2**20))

    #            -   A   -  O   -   P   -   C   -   A   -   O   -   P   -  C   -
    seen = found(10, 5, 10, 5, 10, 10, 10, 10, 20, 10, 20, 10, 20, 19, 20, 4, 20)
    assert seen.ratios(ARRIVAL) == pytest.approx([0.5, 0.5])
    assert seen.ratios(PROGRAM) == pytest.approx([0.5, 0.5])
    assert seen.ratios(PREVIEWS) == pytest.approx([1.0, 0.95])
    assert seen.ratios(CHECKPOINT) == pytest.approx([10 / 15, 0.2])
    assert seen.verdict(ARRIVAL) == "below 0.98"
    assert seen.verdict(PREVIEWS) == "not resolved"
    assert found(*[10.0] * 17).verdict(CHECKPOINT) == "at least 0.98"
