"""What the process has imported from which all workers on CPUs are forked; see `local_cluster.py`.

Nobody imports this module but the fork server, which can be told nothing else.
"""

# ruff: noqa: E402, F401
import gc

gc.disable()  # as in `rank_imports`, until that enables it again

import rehearsal_kit.cluster.rank_host
import rehearsal_kit.rank.rank_imports

gc.freeze()
