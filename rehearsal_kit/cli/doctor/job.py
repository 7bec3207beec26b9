"""What the nodes of a job are like, as findings."""

from __future__ import annotations

from collections.abc import Sequence

from rehearsal_kit.cli.doctor.finding import Finding
from rehearsal_kit.jobs.node_report import NodeReport

CLOCKS_S = 2.0
"""Clocks that differ by more confuse whoever reads the times of a run."""
FSYNC_MS = 500.0
SHARED = "have the run folder and REHEARSAL_KIT_HOME lie on a file system that all nodes share"


def findings_of(reports: Sequence[NodeReport], *, nodes: int) -> list[Finding]:
    """One finding for each thing that was looked at; nodes: how many the job has."""
    silent = nodes - len(reports)
    return [
        Finding(
            what="nodes",
            found=f"{len(reports)} of {nodes} have told: {', '.join(each.host for each in reports)}",
            fix=SHARED if silent else "",
            essential=True,
        ),
        *[_gpus(each) for each in reports],
        *[
            Finding(what=f"{each.host}: interfaces", found=", ".join(each.interfaces) or "none")
            for each in reports
        ],
        _clocks(reports),
        _files(reports),
        _meeting(reports, nodes),
    ]


def _gpus(report: NodeReport) -> Finding:
    return Finding(what=f"{report.host}: GPUs", found="; ".join(report.gpus) or f"none: {report.no_gpus}")


def _clocks(reports: Sequence[NodeReport]) -> Finding:
    clocks = [each.clock_s for each in reports]
    apart = max(clocks) - min(clocks)
    return Finding(
        what="clocks",
        found=f"{apart:.2f} s apart",
        fix="" if apart < CLOCKS_S else "have the nodes follow a time server: tell whoever runs this machine",
    )


def _files(reports: Sequence[NodeReport]) -> Finding:
    wrong = [f"{each.host}: {each.locks}" for each in reports if each.locks]
    slow = max(each.fsync_ms for each in reports)
    fix = "mount it with locks (Lustre: -o flock), or use another folder" if wrong else ""
    if not wrong and slow > FSYNC_MS:
        fix = "use a faster file system for runs: ledgers wait for it at every entry"
    return Finding(
        what="shared folder",
        found="; ".join(wrong) or f"locks hold, a write is on disk in {slow:.0f} ms",
        fix=fix,
        essential=bool(wrong),
    )


def _meeting(reports: Sequence[NodeReport], nodes: int) -> Finding:
    troubles = [f"{each.host}: {each.trouble}" for each in reports if each.trouble]
    rates = [each.sum_mib_s for each in reports if each.ranks == nodes]
    if troubles or len(rates) < nodes:
        return Finding(
            what="ranks",
            found="; ".join(troubles) or "not all have met",
            fix="name the interface that the nodes share by --interface; `ip -brief address` lists them",
            essential=True,
        )
    backend = reports[0].backend
    return Finding(what="ranks", found=f"all {nodes} have met; {backend} sums {min(rates):.0f} MiB/s")
