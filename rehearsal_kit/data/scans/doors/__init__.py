"""The doors to files from elsewhere: only what is a file, lies where it may, and holds what it claims.

Begin at scan_file.py.
"""
