"""Processes: starting, reaching, hosting and watching them. Dask is known here, in session and in jobs.

    kernel --scheduler_calls--> coordinator (in the scheduler) --protocol--> rank_host (in a worker)

Begin at cluster.py for what a person calls, at coordinator.py for what happens when a worker dies. Imports
rank and all below it.
"""
