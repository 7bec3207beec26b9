"""Batch jobs: clusters inside the allocation of a batch system, asked for from the login node.

    launch --script--> batch system --> job_server (first node: scheduler) --> node_workers (every node)
       |                                        |
       +------ the job's private folder --------+   key, order, log, and where the cluster is

Begin at launch.py for what a person calls, at job_server.py for what runs inside. Imports session and all
below it.
"""
