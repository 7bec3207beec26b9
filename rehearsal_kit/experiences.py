"""From the file that arrived to the experience it brings, whatever kind of file it is."""

from __future__ import annotations

from rehearsal_kit.commands import Arrived
from rehearsal_kit.preparation import Preparation
from rehearsal_kit.scan_tasks import open_scan_task
from rehearsal_kit.scans.opening import open_scan
from rehearsal_kit.tasks import Experience
from rehearsal_kit.tensor_tasks import is_tensor_task, open_tensor_task


def open_experience(arrived: Arrived, preparation: Preparation) -> Experience:
    """A file written by `write_task`, or a scan; the preparation is fitted to a scan if it was not yet.

    Raises:
        TaskError, ScanError: a file that cannot be used, with the reason.
    """
    if is_tensor_task(arrived.path):
        return open_tensor_task(arrived)
    return open_scan_task(arrived, preparation.fitted(open_scan(arrived.path)))
