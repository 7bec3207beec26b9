"""A cluster in a job of PBS, whose commands are stood in for: the scripts run on this machine."""

from __future__ import annotations

import pytest
from faultkit import wait_for

from rehearsal_kit.batch.job import Job
from rehearsal_kit.cluster.job_folder import job_named
from rehearsal_kit.jobs.launch import launch


@pytest.mark.cluster
@pytest.mark.timeout(200)
def test_a_job_of_pbs_ends_by_its_own_timer_before_the_system_would_end_it(pbs):
    """PBS sends no signal: the job knows its wall time."""
    cluster = launch(Job(site="pbs", interface="lo", time="1", margin_s=40))
    files = job_named("")
    assert (cluster.address.workers, cluster.address.kind) == (1, "cpu")
    assert f"rehearsal-kit launch --cancel {files.read_job().number}" in repr(cluster)
    wait_for(lambda: not files.address.exists())
    cluster.disconnect()
    wait_for(lambda: files.state().phase == "ended")
    assert not files.key.exists()
    assert not files.failure.exists()
