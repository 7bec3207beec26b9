"""Clusters in batch jobs: asked for from the login node, and what runs inside their allocation.

    launch --script--> batch system --> job_server (first node: scheduler) --> node_workers (every node)
       |                                        |
       +------ the job's private folder --------+   key, order, log, and where the cluster is

Begin at launch.py for what a person calls, at job_server.py for what runs inside. Imports session and all
below it.
"""
