"""The job script, as a person can read, change and submit it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from rehearsal_kit.batch.job import Job
from rehearsal_kit.batch.systems import SYSTEMS
from rehearsal_kit.cluster.job_folder import JobFiles


def job_script(job: Job, files: JobFiles) -> str:
    """The script of this job; nothing in it is secret: the key lies in the folder that it names."""
    site = job.described
    system = SYSTEMS[site.system]
    of_kind = site.gpu_directives if job.kind == "cuda" else site.cpu_directives
    options = [*site.directives, *of_kind]
    lines = [
        "#!/bin/bash",
        *[f"{system.prefix} {line}" for line in system.directives(job, log=files.log)],
        *[f"{system.prefix} {job.filled(line)}" for line in options],
        *[f"{system.prefix} {line}" for line in job.options],
        "",
        *[f"# {line}" for line in filter(None, [site.note])],
        *site.setup,
        "# This process becomes ours, so that it hears when the time of the job is nearly over.",
        f"exec {shlex.quote(sys.executable)} -P -m rehearsal_kit.jobs {shlex.quote(str(files.folder))}",
    ]
    return "\n".join(lines) + "\n"


def write_script(job: Job, files: JobFiles) -> Path:
    """Write it into the folder of the job; its path."""
    files.script.touch(mode=0o700)
    files.log.touch(mode=0o600)  # else the batch system makes it, and others may read it
    files.script.write_text(job_script(job, files))
    return files.script
