"""A home folder of one's own for jobs, and a PBS that is stood in for."""

from __future__ import annotations

import os

import pbskit
import pytest


@pytest.fixture
def pbs(tmp_path, monkeypatch):
    """A PBS that is stood in for, and a home folder without jobs."""
    (tmp_path / "bin").mkdir()
    variables = pbskit.install(tmp_path / "bin")
    monkeypatch.setenv("PBS_STAND_IN", variables["PBS_STAND_IN"])
    monkeypatch.setenv("PATH", f"{variables['PATH']}:{os.environ['PATH']}")
    monkeypatch.setenv("REHEARSAL_KIT_HOME", str(tmp_path / "home"))
    return tmp_path
