"""Batch systems: what a person asks of them, what is particular to a site, and their commands.

Begin at job.py for what is asked for, at system.py for what a batch system can do. Imports base alone.
"""
