"""The table: raw errors always beside the gap closed, and no claim without a spread."""

from __future__ import annotations

import json

import pytest

from rehearsal_kit.reports.comparison import HEAD, Comparison, Outcome
from rehearsal_kit.reports.cost_figures import front_figure

# Task 0 was best after task 1, so that forgetting is not backward transfer with the sign turned.
MATRIX = [[0.2, None, None], [0.15, 0.1, None], [0.5, 0.2, 0.1]]


def outcome(strategy: str, final: float, **changes) -> Outcome:
    values = {
        "strategy": strategy,
        "tasks": ["<a>", "b"],
        "set_aside": [("torn", "cut short")],
        "simulated": True,
        "matrix": [[0.1, None], [final, final]],
        "seconds": 10.0,
        "steps": 50,
        "waited": 0.01,
        "remote": 0.5 if strategy == "ER" else None,
    }
    return Outcome(**{**values, **changes})


def comparison(*finals: tuple[float, float, float]) -> Comparison:
    made = Comparison()
    for seed, errors in enumerate(finals):
        for strategy, error in zip(("ER", "Incremental", "FromScratch"), errors, strict=True):
            made.add(seed, outcome(strategy, error))
    return made


def one(**changes) -> Comparison:
    return comparison_of({0: [outcome("ER", 0.2, **changes)]})


def comparison_of(outcomes: dict[int, list[Outcome]], **settings) -> Comparison:
    made = Comparison(**settings)
    for seed, of_seed in outcomes.items():
        for each in of_seed:
            made.add(seed, each)
    return made


def cells(made: Comparison, strategy: str) -> dict[str, str]:
    """The row of a strategy by column."""
    head, rows = made.rows()
    (row,) = [row for row in rows if row[0] == strategy]
    return dict(zip(head, row, strict=True))


def finite(text: str):
    pytest.fail(f"{text} in JSON that anything but Python can read")


def test_one_seed_says_so_beside_the_raw_errors():
    text = comparison((0.2, 0.5, 0.1)).text()
    assert "0.75 (one seed, no spread known)" in text
    assert "0.2000" in text
    assert "0.5000" in text
    assert "SIMULATED" in text
    assert "set aside torn: cut short" in text
    assert "beside FromScratch" not in text


def test_several_seeds_with_and_without_a_gap():
    assert (
        "0.75 +- 0.00 (3 seeds)" in comparison((0.2, 0.5, 0.1), (0.21, 0.51, 0.11), (0.19, 0.49, 0.09)).text()
    )
    assert "no gap" in comparison((0.2, 0.5, 0.1), (0.2, 0.1, 0.2), (0.2, 0.1, 0.3)).text()


def test_a_share_of_the_gap_smaller_than_twice_its_spread_is_unresolved():
    made = comparison((0.1, 0.5, 0.1), (0.5, 0.5, 0.1), (0.3, 0.5, 0.1))
    assert cells(made, "ER")["gap closed"] == "unresolved: 0.50 +- 0.50 (3 seeds)"
    assert "final error of ER beside FromScratch: unresolved (diff 0.2 +- 0.2)" in made.notes()
    summary = made.data()["summary"]["ER"]
    assert summary["gap_closed"] == pytest.approx(0.5)
    assert summary["gap_spread"] == pytest.approx(0.5)
    assert summary["verdict"].startswith("unresolved")


def test_a_difference_larger_than_twice_its_spread_has_a_direction():
    made = comparison((0.3, 0.5, 0.1), (0.31, 0.5, 0.1), (0.29, 0.5, 0.1))
    assert "final error of ER beside FromScratch: higher by 0.2 +- 0.01" in made.notes()


def test_the_columns_are_those_of_the_formulas():
    made = one(
        tasks=["a", "b", "c"],
        matrix=MATRIX,
        before=[0.9, 0.6, 0.5],
        untrained=[0.9, 0.8, 0.9],
        seconds=12.5,
        steps=77,
        waited=0.125,
        memory_bytes=3 * 2**20,
    )
    assert list(cells(made, "ER")) == list(HEAD)
    assert cells(made, "ER") == {
        "strategy": "ER",
        "final error": "0.2667",  # (0.5 + 0.2 + 0.1) / 3
        "on average": "0.1972",  # (0.2 + 0.125 + 0.2667) / 3
        "forgetting": "0.2250",  # (0.5 - 0.15 + 0.2 - 0.1) / 2
        "backward": "-0.2000",  # (0.2 - 0.5 + 0.1 - 0.2) / 2
        "forward": "0.3000",  # (0.8 - 0.6 + 0.9 - 0.5) / 2
        "gap closed": "not all runs are there",
        "stability gap": "-",
        "x rows": "-",
        "training": "12.5 s",
        "x Incremental": "-",
        "steps": "77",
        "wait": "1.00 %",
        "memory": "3 MiB",
    }
    data = made.data()["seeds"]["0"]["ER"]
    assert data["final_error"] == pytest.approx(0.8 / 3)
    assert data["average_error"] == pytest.approx((0.2 + 0.125 + 0.8 / 3) / 3)
    assert data["forgetting"] == pytest.approx(0.225)
    assert data["backward_transfer"] == pytest.approx(-0.2)
    assert data["forward_transfer"] == pytest.approx(0.3)


def test_means_and_spreads_are_over_the_seeds():
    made = comparison_of({
        0: [outcome("ER", 0.2, seconds=10.0, waited=0.3, memory_bytes=2**20)],
        1: [outcome("ER", 0.4, seconds=30.0, waited=0.1, memory_bytes=5 * 2**20)],
    })  # fmt: skip
    row = cells(made, "ER")
    assert row["final error"] == "0.3000 +- 0.1414"
    assert row["training"] == "20.0 s"
    assert row["wait"] == "1.00 %"  # 0.4 s of 40 s
    assert row["memory"] == "5 MiB"
    assert made.data()["memory_bytes"] == 5 * 2**20
    assert "peak memory of all processes together: 5 MiB" in made.text()


def test_ratios_are_of_runs_of_the_same_seed():
    made = comparison_of({
        0: [outcome("Incremental", 0.5, seconds=10.0), outcome("ER", 0.2, seconds=15.0)],
        1: [outcome("ER", 0.2, seconds=40.0), outcome("Incremental", 0.5, seconds=20.0)],
        2: [outcome("ER", 0.2, seconds=1000.0)],
    })  # fmt: skip
    assert made.ratios("ER") == [1.5, 2.0]
    assert made.ratios("Incremental") == [1.0, 1.0]
    assert cells(made, "ER")["x Incremental"] == "1.75 +- 0.35"
    assert made.data()["summary"]["ER"]["runtime_ratios"] == [1.5, 2.0]
    assert one().ratios("ER") == []


def test_rows_are_told_beside_incremental_and_make_the_front():
    made = comparison_of({
        seed: [
            outcome("Incremental", 0.5, rows=800),
            outcome("FromScratch", 0.1, rows=2400),
            outcome("ER", 0.2, rows=900),
            outcome("of an earlier version", 0.2),
        ]
        for seed in (0, 1)
    })  # fmt: skip
    assert [cells(made, name)["x rows"] for name in ("Incremental", "FromScratch", "ER")] == [
        "1.000",
        "3.000",
        "1.125",
    ]
    assert made.front()["ER"] == (1.125, pytest.approx(0.75), 0.0)
    assert set(made.front()) == {"ER"}
    assert made.data()["summary"]["ER"]["rows_ratio"] == 1.125
    figure = front_figure(made.front())
    assert [trace.name for trace in figure.data[1:]] == [*made.front()]
    assert json.loads(figure.to_json())["data"][1]["y"] == [pytest.approx(0.75)]


def test_points_are_of_seeds_of_which_both_numbers_are_known():
    made = comparison_of({
        2: [outcome("ER", 0.9, seconds=90.0)],
        1: [outcome("ER", 0.3, seconds=30.0), outcome("Incremental", 0.5, seconds=20.0)],
        0: [outcome("Incremental", 0.4, seconds=10.0), outcome("ER", 0.2, seconds=25.0)],
    })  # fmt: skip
    assert made.points() == {"ER": ([2.5, 1.5], [0.2, 0.3]), "Incremental": ([1.0, 1.0], [0.4, 0.5])}
    assert one().points() == {}


def test_finals_come_in_order_of_seed_whatever_ran_first():
    made = comparison_of({1: [outcome("ER", 0.4)], 0: [outcome("ER", 0.2)]})
    assert made.finals("ER") == [0.2, 0.4]


def test_runs_of_different_seeds_are_never_compared():
    made = comparison_of({
        0: [outcome("ER", 0.2), outcome("Incremental", 0.5), outcome("FromScratch", 0.1)],
        1: [outcome("ER", 0.2), outcome("Incremental", 0.5)],
        2: [outcome("FromScratch", 0.1)],
    })  # fmt: skip
    assert cells(made, "ER")["gap closed"] == "not all runs are there"
    assert not [line for line in made.notes() if line.startswith("final error of ER beside")]


@pytest.mark.parametrize("matrix", [[], [[None, None], [None, None]]], ids=["no rows", "nothing evaluated"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_without_a_finished_task_is_told_and_breaks_nothing(matrix, seeds):
    made = comparison(*[(0.2, 0.5, 0.1)] * (seeds - 1))
    tasks = ["a", "b"][: len(matrix)]
    for strategy in ("ER", "Incremental", "FromScratch"):
        made.add(seeds - 1, outcome(strategy, 0.0, tasks=tasks, matrix=matrix, seconds=0.0, steps=0))
    text = made.text()
    assert "set aside torn: cut short" in text
    assert cells(made, "ER")["gap closed"] == "not all runs are there"
    assert "<td>not all runs are there</td>" in made.html()
    assert "not all runs are there" in made.markdown()
    data = json.loads(json.dumps(made.data()), parse_constant=finite)
    assert data["seeds"][str(seeds - 1)]["ER"]["final_error"] is None
    assert data["summary"]["ER"]["final_errors"][-1] is None
    assert data["summary"]["ER"]["gap_closed"] is None


def test_an_error_that_is_not_there_is_no_difference_of_nan():
    made = comparison((0.2, 0.5, 0.1))
    made.add(1, outcome("ER", 0.0, tasks=[], matrix=[]))
    made.add(1, outcome("FromScratch", 0.1))
    assert not [line for line in made.notes() if "nan" in line]


def test_who_was_steered_is_marked():
    made = comparison_of({0: [outcome("ER", 0.2, steered=True), outcome("Incremental", 0.5)]})
    names = [row[0] for row in made.rows()[1]]
    assert names == ["ER (steered)", "Incremental"]
    assert made.data()["seeds"]["0"]["ER"]["steered"] is True


def test_the_markdown_is_a_table():
    lines = comparison((0.2, 0.5, 0.1), (0.3, 0.6, 0.2)).markdown().splitlines()
    assert lines[0] == f"| {' | '.join(HEAD)} |"
    assert lines[1] == f"|{' --- |' * len(HEAD)}"
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {len(HEAD) + 1}
    assert "0.2500 ± 0.0707" in lines[2]
    assert "+-" not in "".join(lines)


def test_without_a_look_at_memory_none_is_claimed():
    made = one()
    assert cells(made, "ER")["memory"] == "-"
    assert "peak memory" not in made.text()


def test_the_data_has_the_names_that_the_readme_gives():
    data = json.loads(json.dumps(comparison((0.2, 0.5, 0.1)).data(), allow_nan=False))
    er = data["seeds"]["0"]["ER"]
    assert er["test_error"] == [[0.1, None], [0.2, 0.2]]
    assert er["remote_share"] == 0.5
    assert er["waited_seconds"] == 0.01


def test_the_data_is_plain_and_complete_and_the_html_escaped():
    made = comparison((0.2, 0.5, 0.1))
    data = json.loads(json.dumps(made.data(), allow_nan=False))
    assert data["summary"]["Incremental"] == {
        "final_errors": [0.5],
        "gap_closed": None,
        "gap_spread": None,
        "verdict": "reference",
        "rows_ratio": None,
        "runtime_ratios": [1.0],
    }
    assert data["summary"]["ER"]["gap_closed"] == pytest.approx(0.75)
    assert "<td>ER</td>" in made.html()
    assert "<a>" not in made.html()
    measured = comparison_of({0: [outcome("<i>ER</i>", 0.2)]}, measure="<b>error</b>")
    assert "&lt;b&gt;error&lt;/b&gt;" in measured.html()
    assert "<i>" not in measured.html()
    assert measured.data()["error"] == "<b>error</b>"
