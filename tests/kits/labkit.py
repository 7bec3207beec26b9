"""A real JupyterLab and a real headless Chromium, driven as a person would. Everything on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
LAB_OPTIONS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--KernelManager.transport=ipc",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
NO_NEWS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}
JUPYTER_FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR",
)


def require_browser() -> None:
    """Skip the test with the reason where there is no browser; in CI a missing browser is a failure."""
    missing = [
        name for name, found in (("playwright", _has_playwright()), ("chromium", _chromium())) if not found
    ]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{' and '.join(missing)} missing, and CI must not skip the browser tests")
    if missing:
        pytest.skip(f"{' and '.join(missing)} missing")


def screenshots(folder: Path) -> Path:
    """Where screenshots go: REHEARSAL_KIT_SCREENSHOTS, or this folder."""
    chosen = Path(os.environ.get("REHEARSAL_KIT_SCREENSHOTS", folder))
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def notebook(*cells: str) -> dict[str, Any]:
    """A notebook document of these code cells."""
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [code_cell(source, f"cell-{i}") for i, source in enumerate(cells)],
    }


def code_cell(source: str, name: str) -> dict[str, Any]:
    """One code cell that was never run."""
    return {
        "id": name,
        "cell_type": "code",
        "source": source,
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }


@dataclass(frozen=True)
class Server:
    """A JupyterLab that is up."""

    address: str
    token: str
    root: Path
    clusters: Path
    """Where the toolkit keeps the clusters that are started from here."""


@contextlib.contextmanager
def jupyter_lab(notebooks: Mapping[str, dict[str, Any]], *, python_path: str = "") -> Iterator[Server]:
    """Serve these notebooks from a throw-away folder with throw-away Jupyter settings."""
    work = Path(tempfile.mkdtemp(prefix="lab-"))
    root = work / "root"
    root.mkdir()
    for name, document in notebooks.items():
        (root / name).write_text(json.dumps(document))
    port, token = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", *LAB_OPTIONS, f"--ServerApp.port={port}"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root}"]
    with (work / "lab.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment(work, python_path), stdout=log, stderr=log, start_new_session=True
        )
        server = Server(f"http://127.0.0.1:{port}", token, root, work / "clusters")
        try:
            answer(process, f"{server.address}/api/status?token={server.token}")
            yield server
        finally:
            _shut_down(server, process)
    shutil.rmtree(work)


@contextlib.contextmanager
def chromium(*, width: int = 1400, height: int = 900, scheme: str = "light") -> Iterator[Any]:
    """A page of a fresh browser with a fresh profile."""
    from playwright.sync_api import sync_playwright

    profile = tempfile.mkdtemp(prefix="chromium-")
    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            profile,
            headless=True,
            executable_path=_chromium(),
            args=list(CHROMIUM_FLAGS),
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        )
        try:
            page = context.pages[0]
            page.set_default_timeout(30_000)
            yield page
        finally:
            context.close()
    shutil.rmtree(profile, ignore_errors=True)


class Lab:
    """A notebook open in JupyterLab, and the few gestures the tests need."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.page.goto(
            f"{self.server.address}/lab/workspaces/test/tree/{name}?token={self.server.token}&reset"
        )
        self.ready()

    def ready(self) -> None:
        """Wait until the notebook is on the page and its kernel is idle."""
        self.page.wait_for_function("() => window.jupyterapp !== undefined", timeout=60_000)
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")
        self.page.wait_for_function(
            """() => { const w = window.jupyterapp.shell.currentWidget;
                       const k = w && w.context && w.context.sessionContext.session?.kernel;
                       return k && k.connectionStatus === 'connected' && k.status === 'idle'; }""",
            timeout=60_000,
        )

    def command(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        """Run a command of JupyterLab and wait for it."""
        self.page.evaluate(
            "async ([name, given]) => { await window.jupyterapp.commands.execute(name, given); }",
            [name, arguments or {}],
        )

    def run_all(self) -> None:
        """Run all cells, as the menu does; fails when one of them raised."""
        self.command("notebook:run-all-cells")
        raised = self.page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] pre')
        assert not (found := [text for text in raised.all_inner_texts() if "Traceback" in text]), found

    def theme(self, name: str) -> None:
        """Switch to "Light" or "Dark"."""
        self.command("apputils:change-theme", {"theme": f"JupyterLab {name}"})
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def execute(self, code: str) -> str:
        """What this code prints in the notebook's kernel; the document is left alone."""
        printed: str = self.page.evaluate(
            """async code => {
                 const k = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
                 let out = '';
                 const asked = k.requestExecute({ code, store_history: false });
                 asked.onIOPub = ({ header, content }) => {
                   if (header.msg_type === 'stream') out += content.text;
                   if (header.msg_type === 'error') out += content.traceback.join('\\n');
                 };
                 await asked.done;
                 return out; }""",
            code,
        )
        return printed.strip()

    def readout(self, label: str) -> Any:
        """The number beside the slider that carries this label; it can be typed into."""
        named = self.page.locator(".widget-label", has_text=label)
        return self.page.locator(".widget-slider").filter(has=named).locator(".widget-readout")

    def type_slider(self, label: str, value: object) -> None:
        """Type a value into the number beside a slider."""
        self.readout(label).click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(str(value))
        self.page.keyboard.press("Enter")


def _has_playwright() -> bool:
    try:
        import playwright  # noqa: F401
    except ImportError:
        return False
    return True


def _chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def environment(work: Path, python_path: str = "") -> dict[str, str]:
    """Variables for a JupyterLab whose folders, clusters and temporary files all lie in `work`."""
    work.mkdir(exist_ok=True)
    environment = dict(os.environ)
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment.get("PATH", "")
    # Clusters of a test are its own: stopping all clusters of a person does not reach them.
    environment["REHEARSAL_KIT_HOME"] = str(work / "clusters")
    if python_path:
        environment["PYTHONPATH"] = python_path
    # What a notebook writes into a temporary folder goes with the rest.
    for variable in (*JUPYTER_FOLDERS, "TMPDIR"):
        folder = work / variable.lower()
        folder.mkdir()
        environment[variable] = str(folder)
    for plugin, values in NO_NEWS.items():
        path = work / "jupyterlab_settings_dir" / (plugin.replace(":", "/") + ".jupyterlab-settings")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    return environment


def answer(process: subprocess.Popen[Any], url: str) -> bytes:
    """What a server answers; it tells its address some time before it listens there."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(url, timeout=2).read()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _shut_down(server: Server, process: subprocess.Popen[bytes]) -> None:
    # Asked over HTTP it ends its kernels in good order; killed only when it does not.
    request = urllib.request.Request(f"{server.address}/api/shutdown?token={server.token}", method="POST")
    with contextlib.suppress(OSError):
        urllib.request.urlopen(request, timeout=5).read()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
