"""The report: one file, no network, everything escaped, and the right pictures in it."""

from __future__ import annotations

import base64
import re
import zlib

import labkit
import numpy as np
import pytest

from rehearsal_kit.base.errors import SettingsError
from rehearsal_kit.record.preview_files import Preview, append_previews
from rehearsal_kit.record.rank_records import Joined
from rehearsal_kit.record.records import (
    BranchBegan,
    CheckpointTaken,
    Evaluated,
    Steps,
    TaskArrived,
    TaskEnded,
)
from rehearsal_kit.record.timeline import Timeline
from rehearsal_kit.reports.figures import age_figure, loss_figure, terms_figure
from rehearsal_kit.reports.html_report import ReportedRun, write_report
from rehearsal_kit.reports.pictures import Scale, colours, png_uri

TABLE = "<table><tr><th>strategy</th><th>mean</th></tr><tr><td>ER</td><td>0.1</td></tr></table>"
STRATEGIES = {"ER": 0.02, "Incremental": 0.2, "FromScratch": 0.0}
"""How much the error on a task grows with each later task."""
TASKS = 3


def timeline(
    forgetting: float, *, name: str = "scan", terms: tuple[str, ...] = (), age: float | None = None
) -> Timeline:
    told = Timeline([Joined(rank=0, ranks=2, device="cpu", process=1, time=1.7e9)])
    for after in range(TASKS):
        step = 50 * after
        losses = tuple(float(value) for value in np.exp(-np.arange(50) / 20) + 0.05)
        told.append(
            TaskArrived(
                step=step, task=after, name=f"{name} {after}", path="/p", training=90, watched=9, test=9,
                skipped=1, simulated=True,
            )
        )  # fmt: skip
        told.append(
            Steps(
                first=step, task=after, losses=losses, seconds=2.0, waited=0.1, hidden=0.2, representatives=9,
                remote=4, stored=20, time=1.7e9, terms={term: 0.1 * (1 + len(term)) for term in terms},
                outputs_age=None if age is None else age * (1 + after),
            )
        )  # fmt: skip
        told.append(TaskEnded(step=step + 50, task=after, seconds=2.0 + forgetting, time=1.7e9 + 60 * after))
        for task in range(after + 1):
            error = 0.1 + forgetting * (after - task)
            for split in ("watched", "test"):
                told.append(
                    Evaluated(step=step + 50, after=after, task=task, split=split, errors={"phase": error})
                )
    return told


def previews(path, forgetting: float):
    rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
    for after in range(TASKS):
        for task in range(after + 1):
            wave = np.sin((3 + task) * rows) * np.cos(4 * columns)
            noise = np.random.default_rng(task).normal(size=wave.shape) * (
                0.02 + 3 * forgetting * (after - task)
            )
            preview = Preview(
                task=task, step=50 * after, name="diffraction",
                input=np.exp(-8 * (rows**2 + columns**2)).astype(np.float32),
                truth=fields(wave), predicted=fields(wave + noise), words="",
            )  # fmt: skip
            append_previews(path, [preview], after=after)
    return path


def fields(wave):
    return {"amplitude": (1 + 0.2 * wave).astype(np.float32), "phase": wave.astype(np.float32)}


def class_previews(path, name: str):
    ramp = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28)
    for after in range(TASKS):
        for task in range(after + 1):
            words = f"true label {task}; predicted {after} (0.90), 7 (0.06), 9 (0.02) by <{name}>"
            preview = Preview(
                task=task,
                step=50 * after,
                name="image <grey>",
                input=ramp,
                truth={},
                predicted={},
                words=words,
            )
            append_previews(path, [preview], after=after)
    return path


def all_runs(folder):
    return [
        ReportedRun(name, timeline(forgetting), previews(folder / f"{name}.h5", forgetting))
        for name, forgetting in STRATEGIES.items()
    ]


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, all_runs(tmp_path), title="Three strategies", table_html=TABLE)
    return path


def test_report_is_one_small_file_without_addresses_to_load(report):
    text = report.read_text()
    assert report.stat().st_size < 8e6
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?(https?:)?//", text)
    assert text.count("plotly.js v") == 1
    assert TABLE in text
    assert "Simulated counts" in text
    assert "2 ranks on cpu" in text


def test_report_shows_every_strategy_and_what_was_forgotten(report):
    text = report.read_text()
    assert text.count("<img ") == TASKS * (1 + 2 * (1 + 3)) + 2 * (1 + 2 * 3)
    for name in STRATEGIES:
        assert f"{name}, after task 0" in text
        assert f"{name}, after task 2" in text


@pytest.fixture
def class_report(tmp_path):
    told = {
        "ER": timeline(0.02, terms=("augmented",)),
        "DERpp": timeline(0.01, terms=("new", "distillation", "<i>replay"), age=12.0),
    }
    runs = [ReportedRun(name, of, class_previews(tmp_path / name, name)) for name, of in told.items()]
    path = tmp_path / "class-report.html"
    write_report(path, runs, title="Two strategies", table_html=TABLE)
    return path


def test_report_of_classes_says_what_was_predicted(class_report):
    text = class_report.read_text()
    assert text.count("<img ") == TASKS + 1
    assert "one grey or colour scale" not in text
    assert "image &lt;grey&gt;" in text
    # At the end of the run for each task, and for task 0 once more, before and after.
    for name in ("ER", "DERpp"):
        for task in range(TASKS):
            words = f"true label {task}; predicted 2 (0.90), 7 (0.06), 9 (0.02) by &lt;{name}&gt;"
            assert f"<tr><td>{name}</td><td>{words}</td></tr>" in text
        for after in (0, 2):
            assert f"<td>{name}, after task {after}</td><td>true label 0; predicted {after} (0.90)" in text
    for bad in ("<ER>", "<grey>", "<i>replay"):
        assert bad not in text


def test_terms_and_ages_are_shown_where_there_are_any(report, class_report):
    for title in ("<h2>Terms of the loss</h2>", "<h2>Age of stored outputs</h2>"):
        assert title in class_report.read_text()
        assert title not in report.read_text()


def test_a_line_per_term_with_its_explanation_once():
    runs = {"DERpp": timeline(0.1, terms=("new", "replay"), age=5.0), "AGEM": timeline(0.1, terms=("new",))}
    figure = terms_figure(runs)
    assert [(trace.name, trace.showlegend) for trace in figure.data] == [
        ("new", True),
        ("replay", True),
        ("new", False),
    ]
    assert figure.data[0].line.color == figure.data[2].line.color
    assert figure.data[0].x.tolist() == [24.5, 74.5, 124.5]
    (ages,) = age_figure(runs).data
    assert (ages.name, ages.y.tolist()) == ("DERpp", [5, 10, 15])


def test_texts_are_escaped(tmp_path):
    run = ReportedRun("<i>ER", timeline(0.1, name="<script>x"), None)
    write_report(tmp_path / "r.html", [run], title="<b>T", table_html=TABLE)
    text = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;T" in text
    for bad in ("<i>ER", "<script>x", "<b>T"):
        assert bad not in text
    assert "kept no pictures" in text


def test_names_must_differ(tmp_path):
    runs = [ReportedRun("ER", timeline(0.1), None)] * 2
    with pytest.raises(SettingsError, match="no name twice"):
        write_report(tmp_path / "r.html", runs, title="T", table_html=TABLE)


def test_png_holds_the_pixels():
    image = np.array([[0, 1], [np.nan, 0.5]], np.float32)
    png = base64.b64decode(png_uri(image, Scale(0, 1, colours("grey"))).split(",")[1])
    assert png.startswith(b"\x89PNG")
    begin = png.index(b"IDAT") + 4
    rows = zlib.decompress(png[begin : png.index(b"IEND") - 8])
    assert list(rows) == [0, 1, 255, 0, 0, 128]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens_in_a_browser(report, tmp_path, scheme):
    labkit.require_browser()
    with labkit.chromium(scheme=scheme) as page:
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
        page.on("request", lambda asked: asked.url.startswith("http") and troubles.append(asked.url))
        page.goto(report.as_uri())
        page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
        page.screenshot(path=labkit.screenshots(tmp_path) / f"report-{scheme}.png", full_page=True)
        assert not troubles


def test_of_a_rolled_back_run_only_the_newest_branch_is_reported(tmp_path):
    told = timeline(0.1)
    told.append(CheckpointTaken(step=150, checkpoint=1, weights="", time=0.0))
    told.append(Steps(**{**vars(told.last(Steps)), "first": 150, "task": 3}))
    told.append(TaskEnded(step=200, task=3, seconds=1.0, time=1.7e9))
    told.append(BranchBegan(branch=1, step=150, checkpoint=1, parent=0, left=200, time=0.0))
    kept = previews(tmp_path / "previews.h5", 0.1)
    ramp = np.full((32, 32), 0.25, np.float32)
    left = Preview(
        task=0, step=200, name="diffraction", input=ramp, truth=fields(ramp), predicted=fields(ramp), words=""
    )
    append_previews(kept, [left], after=3)
    report = tmp_path / "report.html"
    write_report(report, [ReportedRun("ER<1>", told, kept)], title="x", table_html=TABLE)
    text = report.read_text()
    assert "ER&lt;1&gt; was rolled back" in text
    assert "ER&lt;1&gt;, after task 2" in text
    assert "ER&lt;1&gt;, after task 3" not in text
    figure = loss_figure({"ER": told})
    assert [(trace.name, trace.line.dash, trace.x[0]) for trace in figure.data] == [
        ("ER, branch 0", "dash", 150),
        ("ER", None, 0),
    ]
