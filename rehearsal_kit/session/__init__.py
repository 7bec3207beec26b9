"""The kernel's handle on a run: start, steer, attach, resume, replay, results.

Begin at session.py and at handle.py, which all sessions share. Imports cluster, reports and all below them.
"""
