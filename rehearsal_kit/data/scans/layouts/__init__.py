"""Layouts of files of scans, one in each module: what tells that a file has it, and where its fields lie.

Begin at registry.py; mapped.py describes those that are no more than a table.
"""
