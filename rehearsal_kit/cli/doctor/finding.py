"""What a check of the machine found, and how all of it is told."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    what: str
    found: str
    fix: str = ""
    """What to do; empty where nothing lacks."""
    essential: bool = False
    """Whether nothing works while it lacks."""


def well(findings: Sequence[Finding]) -> bool:
    """Whether nothing essential lacks."""
    return not any(finding.essential and finding.fix for finding in findings)


def report(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """One line for each finding: what, found, fix; longer ones go on below."""
    width = shutil.get_terminal_size((100, 24)).columns if width is None else width
    column = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok" if not finding.fix else "LACK" if finding.essential else "note"
        text = f"{mark:4}  {finding.what:{column}}  {finding.found}"
        if finding.fix:
            text += f" — {finding.fix}"
        lines += textwrap.wrap(text, max(width, 40), subsequent_indent=" " * (column + 8))
    lacking = [finding.what for finding in findings if finding.essential and finding.fix]
    lines += ["", f"essential, and lacking: {', '.join(lacking)}" if lacking else "nothing essential lacks."]
    return "\n".join(lines)


def report_json(findings: Sequence[Finding]) -> str:
    """The same as JSON: {"well": ..., "findings": [{"what", "found", "fix", "essential"}]}."""
    return json.dumps({"well": well(findings), "findings": [asdict(each) for each in findings]}, indent=1)
