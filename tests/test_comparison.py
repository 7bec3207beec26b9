"""The table: raw errors always beside the gap closed, and no claim without a spread."""

from __future__ import annotations

import json

from rehearsal_kit.comparison import Comparison, Outcome


def outcome(strategy: str, final: float) -> Outcome:
    return Outcome(
        strategy=strategy,
        tasks=["<a>", "b"],
        set_aside=[("torn", "cut short")],
        simulated=True,
        matrix=[[0.1, None], [final, final]],
        seconds=10.0,
        steps=50,
        waited=0.01,
        remote=0.5 if strategy == "ER" else None,
    )


def comparison(*finals: tuple[float, float, float]) -> Comparison:
    made = Comparison()
    for seed, errors in enumerate(finals):
        for strategy, error in zip(("ER", "Incremental", "FromScratch"), errors, strict=True):
            made.add(seed, outcome(strategy, error))
    return made


def test_one_seed_says_so_beside_the_raw_errors():
    text = comparison((0.2, 0.5, 0.1)).text()
    assert "0.75 (one seed, no spread known)" in text
    assert "0.2000" in text
    assert "0.5000" in text
    assert "SIMULATED" in text
    assert "set aside torn: cut short" in text


def test_several_seeds_with_and_without_a_gap():
    assert "0.75 (3 seeds)" in comparison((0.2, 0.5, 0.1), (0.21, 0.51, 0.11), (0.19, 0.49, 0.09)).text()
    assert "no gap" in comparison((0.2, 0.5, 0.1), (0.2, 0.1, 0.2), (0.2, 0.1, 0.3)).text()


def test_the_data_is_plain_and_complete_and_the_html_escaped():
    made = comparison((0.2, 0.5, 0.1))
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["seeds"]["0"]["ER"]["test_error"] == [[0.1, None], [0.2, 0.2]]
    assert data["seeds"]["0"]["ER"]["remote_share"] == 0.5
    assert data["summary"]["Incremental"] == {
        "final_errors": [0.5],
        "gap_closed": None,
        "verdict": "reference",
    }
    assert "<td>ER</td>" in made.html()
    assert "<a>" not in made.html()
