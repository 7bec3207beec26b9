"""The way from files to mini-batches: scans, labelled images, tasks, preparation, the stream.

    scan.h5 --describe--> experience --open, read, prepare--> shard --> task loader --> mini-batches

Begin at experience.py; scans/ reads files as beamlines write them, labels/ makes objects for those that bring
none. Imports buffer (row layouts), record and base.
"""
