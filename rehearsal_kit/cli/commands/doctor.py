"""`rehearsal-kit doctor`: what this machine has, what it lacks, and the fix for each."""

from __future__ import annotations

import argparse

from rehearsal_kit.cli.doctor.examination import examine
from rehearsal_kit.cli.doctor.finding import report, report_json, well


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.set_defaults(command=_doctor)


def _doctor(chosen: argparse.Namespace) -> int:
    findings = examine()
    print(report_json(findings) if chosen.json else report(findings))
    return 0 if well(findings) else 1
