"""The quick start as a person lives it: a real JupyterLab, a real browser, real workers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labkit
import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
ARRIVED = """() => [...document.querySelectorAll('.rk-tasks tr')]
    .filter(row => row.textContent.includes('scan_0')).length >= 2"""
PLOTTED = """() => { const plot = document.querySelector('.js-plotly-plot');
    const tasks = plot ? plot.data.flatMap(trace => Array.from(trace.customdata || [])) : [];
    return new Set(tasks.filter(task => task >= 0)).size >= 2; }"""
PUSH = "() => Number(document.querySelector('.rk-state').dataset.push)"


def quickstart(*, until: str) -> dict[str, Any]:
    """The notebook up to and with the cell of this id; scans arrive three times as fast."""
    text = (REPOSITORY / "notebooks" / "01_quickstart.ipynb").read_text()
    assert text.count("interval_s=8") == 1
    document = json.loads(text.replace("interval_s=8", "interval_s=2.5"))
    ids = [cell["id"] for cell in document["cells"]]
    return {**document, "cells": document["cells"][: ids.index(until) + 1]}


def step_on_page(page: Any) -> int:
    text = page.get_by_role("status").inner_text()
    return int(re.search(r"step\s+(\d+)", text).group(1))


def step_of_session(lab: labkit.Lab) -> int:
    return int(
        lab.execute(
            "from rehearsal_kit.record.records import Steps\n"
            "last = session.timeline.last(Steps)\nprint(last.first + len(last.losses))"
        )
    )


def wait_for_pushes(page: Any, count: int) -> None:
    """Until the page has painted this many more pushes."""
    before = page.evaluate(PUSH)
    page.wait_for_function(f"() => ({PUSH})() >= {before + count}")


def comes(lab: labkit.Lab, condition: str) -> None:
    """Wait until this holds on the page; else say how far the run is."""
    from playwright.sync_api import TimeoutError as TooLateError

    try:
        lab.page.wait_for_function(condition, timeout=90_000)
    except TooLateError as error:
        found = "print(session.state, session.error, session.table(), session.timeline.losses()[0][-1:])"
        raise AssertionError(lab.execute(found)) from error


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[labkit.Lab]:
    labkit.require_browser()
    books = {"quickstart.ipynb": quickstart(until="dashboard")}
    with labkit.jupyter_lab(books, python_path=str(REPOSITORY)) as server, labkit.chromium() as page:
        lab = labkit.Lab(page, server)
        lab.open("quickstart.ipynb")
        try:
            yield lab
        finally:
            page.screenshot(path=labkit.screenshots(tmp_path) / "quickstart-end.png")
            # A cluster is detached and outlives the kernel: a test that failed half way must end its own.
            if list(server.clusters.glob("clusters/*")):
                lab.execute("session.close(); cluster.close()")


def test_missing_browser_skips_but_fails_in_ci(monkeypatch):
    monkeypatch.setattr(labkit, "_chromium", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="chromium missing"):
        labkit.require_browser()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="must not skip"):
        labkit.require_browser()


@pytest.mark.browser
@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_quickstart_is_watched_and_steered(lab, tmp_path):
    page, shots = lab.page, labkit.screenshots(tmp_path)
    panel = page.locator(".rk-panel")
    lab.run_all()
    page.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=90_000)
    comes(lab, ARRIVED)
    comes(lab, PLOTTED)

    pause_stands_still_and_resume_moves(lab, panel)
    both_ranks_apply_representatives_at_one_step(lab)
    a_policy_is_chosen_from_the_menu(lab, panel)
    rolling_back_begins_a_branch(lab, panel)
    panel.scroll_into_view_if_needed()
    page.screenshot(path=shots / "quickstart-light.png")
    lab.theme("Dark")
    wait_for_pushes(page, 2)
    panel.scroll_into_view_if_needed()
    page.screenshot(path=shots / "quickstart-dark.png")

    stop_ends_the_run(lab, panel)
    nothing_is_left_after_closing(lab)
    assert not lab.errors


def pause_stands_still_and_resume_moves(lab: labkit.Lab, panel: Any) -> None:
    panel.get_by_role("button", name="Pause").click()
    panel.get_by_role("button", name="Resume").wait_for()
    assert lab.execute("print(session.state)") == "paused"
    wait_for_pushes(lab.page, 1)
    before = step_of_session(lab)
    assert step_on_page(lab.page) == before
    wait_for_pushes(lab.page, 2)
    assert (step_of_session(lab), step_on_page(lab.page)) == (before, before)
    panel.get_by_role("button", name="Resume").click()
    lab.page.wait_for_function(
        """before => Number(document.querySelector(".rk-state").textContent.match(/step\\s+(\\d+)/)[1])
            > before""",
        arg=before,
    )
    assert step_of_session(lab) > before


def both_ranks_apply_representatives_at_one_step(lab: labkit.Lab) -> None:
    lab.type_slider("representatives", 5)
    lab.page.locator(
        ".rk-said", has_text=re.compile("representatives 5 → in force from step [0-9]+ on all 2 ranks")
    ).wait_for()
    told = json.loads(
        lab.execute(
            "import json\nfrom rehearsal_kit.record.records import Applied\n"
            "applied = [r for r in session.timeline.records(Applied) if r.kind == 'Steer']\n"
            "print(json.dumps([[r.rank, r.step, r.settings['representatives'], r.refused] for r in applied]))"
        )
    )
    (rank_a, step_a, value_a, refused_a), (rank_b, step_b, value_b, refused_b) = told
    assert {rank_a, rank_b} == {0, 1}
    assert step_a == step_b
    assert (value_a, value_b) == (5, 5)
    assert (refused_a, refused_b) == ("", "")


def a_policy_is_chosen_from_the_menu(lab: labkit.Lab, panel: Any) -> None:
    panel.get_by_text("more settings").click()
    panel.get_by_label("policy").select_option("reservoir")
    answered = re.compile("policy reservoir → in force from step [0-9]+ on all 2 ranks")
    lab.page.locator(".rk-said", has_text=answered).wait_for()


def rolling_back_begins_a_branch(lab: labkit.Lab, panel: Any) -> None:
    panel.get_by_role("button", name="Checkpoint now").click()
    panel.get_by_label("checkpoint").locator("option", has_text="#").first.wait_for(state="attached")
    chosen = panel.get_by_label("checkpoint").locator("option").first.inner_text()
    wait_for_pushes(lab.page, 3)  # so that there is something to roll back
    panel.get_by_role("button", name="Roll back").click()
    panel.get_by_role("button", name=f"Confirm: back to {chosen.split()[0]}").click(delay=600)
    lab.page.get_by_role("status").get_by_text(re.compile(r"branch\s+1")).wait_for()
    lab.page.locator(".js-plotly-plot .legendtext", has_text="branch 0").wait_for(state="attached")
    assert lab.execute("print(session.timeline.branches)") == "[0, 1]"


def stop_ends_the_run(lab: labkit.Lab, panel: Any) -> None:
    panel.get_by_role("button", name="Stop").click()
    # A slow click: a double click confirms nothing.
    panel.get_by_role("button", name="Confirm stop").click(delay=600)
    lab.page.get_by_role("status").get_by_text("stopped").wait_for()
    assert lab.execute("print(session.state)") == "stopped"


def nothing_is_left_after_closing(lab: labkit.Lab) -> None:
    kernel = int(lab.execute("import os; print(os.getpid())"))
    workers = json.loads(lab.execute("print(json.dumps(list(cluster.client.run(os.getpid).values())))"))
    lab.execute("beamline_off.set(); session.close(); cluster.close()")
    assert not [pid for pid in workers if psutil.pid_exists(pid)]
    assert not psutil.Process(kernel).children(recursive=True)
    names = lab.execute("import threading; print([thread.name for thread in threading.enumerate()])")
    assert "rehearsal-kit-panel" not in names
