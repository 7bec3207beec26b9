"""`rehearsal-kit doctor`: what this machine, or a job, has, what it lacks, and the fix for each."""

from __future__ import annotations

import argparse
import os

from rehearsal_kit.cli.doctor.examination import examine
from rehearsal_kit.cli.doctor.finding import Finding, report, report_json, well
from rehearsal_kit.cli.doctor.job import findings_of
from rehearsal_kit.jobs.job_examination import allocation, examine_job


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("--json", action="store_true", help="the same as data")
    parser.add_argument("--job", action="store_true", help="look at the nodes of the job this is typed in")
    parser.add_argument(
        "--site", metavar="NAME|FILE.toml", help="with --job: how programs start on its nodes"
    )
    parser.add_argument("--interface", default="", metavar="NAME", help="with --job: what its nodes share")
    parser.set_defaults(command=_doctor)


def _doctor(chosen: argparse.Namespace) -> int:
    findings = _of_job(chosen) if chosen.job else examine()
    print(report_json(findings) if chosen.json else report(findings))
    return 0 if well(findings) else 1


def _of_job(chosen: argparse.Namespace) -> list[Finding]:
    _, nodes = allocation(os.environ)
    return findings_of(examine_job(chosen.site, interface=chosen.interface), nodes=nodes)
