"""The report: one file, no network, everything escaped, and the right pictures in it."""

from __future__ import annotations

import base64
import re
import zlib

import labkit
import numpy as np
import pytest

from rehearsal_kit.errors import SettingsError
from rehearsal_kit.preview import Preview, append_preview
from rehearsal_kit.report import ReportedRun, write_report
from rehearsal_kit.telemetry import Evaluated, Joined, Steps, TaskArrived, TaskEnded
from rehearsal_kit.timeline import Timeline
from rehearsal_kit.widgets.images import Scale, colours, png_uri

TABLE = "<table><tr><th>strategy</th><th>mean</th></tr><tr><td>ER</td><td>0.1</td></tr></table>"
STRATEGIES = {"ER": 0.02, "Incremental": 0.2, "FromScratch": 0.0}
"""How much the error on a task grows with each later task."""
TASKS = 3


def timeline(forgetting: float, *, name: str = "scan") -> Timeline:
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
                remote=4, stored=20, time=1.7e9,
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
            arrays = {
                "diffraction": np.exp(-8 * (rows**2 + columns**2)),
                "amplitude": 1 + 0.2 * wave,
                "phase": wave,
                "predicted_amplitude": 1 + 0.2 * (wave + noise),
                "predicted_phase": wave + noise,
            }
            pictures = {name: array.astype(np.float32) for name, array in arrays.items()}
            append_preview(path, Preview(task=task, step=50 * after, **pictures), after=after)
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
