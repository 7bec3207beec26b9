"""PBS as far as our commands go: qsub runs the commands of a script on this machine.

A stand-in: Debian has no PBS. It reads the `#PBS` lines of a script, and refuses those that it does not know.
"""

from __future__ import annotations

from pathlib import Path

QSUB = r"""#!/usr/bin/env python3
import json, os, re, subprocess, sys
home, words = os.environ["PBS_STAND_IN"], sys.argv[1:]
depends = words[words.index("-W") + 1] if "-W" in words else ""
script = words[-1]
lines = re.findall(r"^#PBS (.*)$", open(script).read(), re.MULTILINE)
options = dict(line.split(" ", 1) for line in lines if not line.startswith("-l"))
if unknown := set(options) - {"-N", "-j", "-o", "-r", "-A", "-q"}:
    sys.exit(f"qsub: illegal option -- {unknown}")
if options.get("-q") == "nowhere":
    sys.exit("qsub: Unknown queue")
if not any("select=" in line for line in lines) or not any("walltime=" in line for line in lines):
    sys.exit("qsub: Job violates resource limits: no select or walltime")
number = f"{len(os.listdir(home)) + 100}.pbs"
job = {"script": script, "log": options["-o"], "depends": depends.partition(":")[2]}
with open(f"{home}/{number}", "w") as file:
    json.dump(job, file)
if options.get("-q") != "busy":
    server = [sys.executable, os.path.join(os.path.dirname(__file__), "pbs_server"), home, number]
    subprocess.Popen(server, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(number)
"""
SERVER = r"""#!/usr/bin/env python3
import json, os, subprocess, sys, time
home, number = sys.argv[1:]
job = json.load(open(f"{home}/{number}"))
end = time.monotonic() + 300
while job["depends"] and not os.path.exists(f"{home}/{job['depends']}.ended") and time.monotonic() < end:
    time.sleep(0.05)
with open(job["log"], "a") as log:
    running = subprocess.Popen(
        ["bash", job["script"]], stdout=log, stderr=log, env={**os.environ, "PBS_JOBID": number}
    )
open(f"{home}/{number}.running", "w").write(str(running.pid))
running.wait()
open(f"{home}/{number}.ended", "w").close()
"""
QSTAT = r"""#!/usr/bin/env python3
import json, os, sys
home, number = os.environ["PBS_STAND_IN"], sys.argv[-1]
if not os.path.exists(f"{home}/{number}"):
    sys.exit(f"qstat: Unknown Job Id {number}")
letter = "Q"
for suffix, state in (("running", "R"), ("ended", "F")):
    letter = state if os.path.exists(f"{home}/{number}.{suffix}") else letter
job = {"job_state": letter, "comment": "Not Running: Insufficient amount of resource: ncpus"}
print(json.dumps({"Jobs": {number: job if letter == "Q" else {"job_state": letter}}}))
"""
QDEL = r"""#!/usr/bin/env python3
import os, signal, sys
home, number = os.environ["PBS_STAND_IN"], sys.argv[-1]
if os.path.exists(f"{home}/{number}.running"):
    os.kill(int(open(f"{home}/{number}.running").read()), signal.SIGTERM)
else:
    open(f"{home}/{number}.ended", "w").close()
"""
MPIEXEC = """#!/bin/bash
[ "$1 $2 $3 $4" = "-n 1 --ppn 1" ] || { echo "mpiexec: $*" >&2; exit 2; }
shift 4
exec "$@"
"""


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; the variables with which they are found."""
    for name, text in (
        ("qsub", QSUB),
        ("pbs_server", SERVER),
        ("qstat", QSTAT),
        ("qdel", QDEL),
        ("mpiexec", MPIEXEC),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o700)
    (folder / "jobs").mkdir()
    return {"PATH": str(folder), "PBS_STAND_IN": str(folder / "jobs")}
