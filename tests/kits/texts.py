"""README and CONTRIBUTING, and the fenced blocks in them, for the tests that execute these."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", ".github/CONTRIBUTING.md"))


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Language, name and body of each fenced block."""
    found = re.findall(r"^```(\w*) ?([\w ]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert 2 * len(found) == len(re.findall("^```", text, re.MULTILINE))
    return found


def block(name: str) -> str:
    """The one of this name."""
    (body,) = (body for text in (README, CONTRIBUTING) for _, each, body in blocks(text) if each == name)
    return body.strip()
