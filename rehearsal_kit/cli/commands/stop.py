"""`rehearsal-kit stop`: ends clusters that were left running."""

from __future__ import annotations

import argparse
import sys

from rehearsal_kit.base.errors import ClusterError
from rehearsal_kit.cluster.cluster import stop_cluster
from rehearsal_kit.cluster.other_clusters import running_clusters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    parser.add_argument("clusters", nargs="*", metavar="ID", help="which; all of yours by default")
    parser.set_defaults(command=_stop)


def _stop(chosen: argparse.Namespace) -> int:
    running = {files.folder.name: files for files in running_clusters()}
    unknown = [name for name in chosen.clusters if name not in running]
    if unknown:
        print(f"no cluster {', '.join(unknown)}; running: {', '.join(running) or 'none'}", file=sys.stderr)
        return 1
    left = 0
    for name in chosen.clusters or running:
        try:
            print(stop_cluster(running[name]))
        except ClusterError as error:  # the others are stopped all the same
            print(f"{name}: {error}", file=sys.stderr)
            left = 1
    if not running:
        print("no cluster of yours is running.")
    return left
