"""Scans on disk: from files as beamlines write them to counts around the beam and positions over the object.

    file --doors/--> scan_file --layouts/, or a mapping--> description --finishing--> scan

Begin at opening.py; layouts/ has one file per layout, frames/ all that is done to frames.
"""
