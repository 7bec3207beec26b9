"""Where the real scans lie that some tests read."""

import os
from pathlib import Path

import pytest


def real_data(name: str) -> Path:
    """A file or folder of the real data; skips the test where it is missing."""
    folder = Path(os.environ.get("REHEARSAL_KIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"there is no {path}; set REHEARSAL_KIT_DATA to the folder of the real scans")
    return path
