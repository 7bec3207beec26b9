"""The kernel's handle on a run: start, steer, attach, resume, replay, results.

Begin at session.py. Imports cluster, reports and all below them.
"""
