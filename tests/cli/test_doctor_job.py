"""What the nodes of a job tell, as findings, and a node of its own; a whole job is in tests/batch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cli.doctor.finding import well
from rehearsal_kit.cli.doctor.job import findings_of
from rehearsal_kit.jobs.job_examination import allocation
from rehearsal_kit.jobs.node_report import NodeReport, report

ONE = NodeReport(
    host="n1",
    gpus=(),
    no_gpus="this machine shows no NVIDIA device",
    interfaces=("eth0 10.0.0.1",),
    clock_s=0.01,
    locks="",
    fsync_ms=2.0,
    ranks=2,
    backend="gloo",
    sum_mib_s=900.0,
)
TWO = replace(ONE, host="n2", interfaces=("eth0 10.0.0.2",), sum_mib_s=800.0)


def test_nodes_that_lack_nothing():
    findings = findings_of([ONE, TWO], nodes=2)
    assert well(findings)
    assert not [finding for finding in findings if finding.fix]
    assert findings[-1].found == "all 2 have met; gloo sums 800 MiB/s"


@pytest.mark.parametrize(
    ("reports", "what", "found", "fix", "essential"),
    [
        ([ONE], "nodes", "1 of 2 have told: n1", "lie on a file system that all nodes share", True),
        ([ONE, replace(TWO, clock_s=7.5)], "clocks", "7.49 s apart", "follow a time server", False),
        ([ONE, replace(TWO, locks="no locks")], "shared folder", "n2: no locks", "-o flock", True),
        ([ONE, replace(TWO, fsync_ms=900)], "shared folder", "in 900 ms", "a faster file system", False),
        ([ONE, replace(TWO, trouble="late", ranks=0)], "ranks", "n2: late", "--interface", True),
    ],
)
def test_what_lacks_is_told_with_the_fix(reports, what, found, fix, essential):
    findings = findings_of(reports, nodes=2)
    (finding,) = [each for each in findings if each.what == what]
    assert found in finding.found
    assert fix in finding.fix
    assert well(findings) != essential


def test_a_node_looks_at_itself(tmp_path):
    (tmp_path / "nonce").write_text("a" * 32)
    told = report(tmp_path, nodes=1, interface="lo")
    assert (told.ranks, told.trouble, told.locks) == (1, "", "")
    assert abs(told.clock_s) < 1
    assert told.fsync_ms > 0
    assert any(each.startswith("lo 127.") for each in told.interfaces)


def test_where_it_is_typed_is_known_from_the_batch_system(tmp_path):
    assert allocation({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3"}) == ("slurm", 3)
    (tmp_path / "nodes").write_text("a\na\nb\n")
    assert allocation({"PBS_JOBID": "7", "PBS_NODEFILE": str(tmp_path / "nodes")}) == ("pbs", 2)
    with pytest.raises(ClusterError, match=r"no job of Slurm or PBS. Begin one, as by `salloc"):
        allocation({})
