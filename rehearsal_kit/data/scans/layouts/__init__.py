"""Layouts of files of scans, one in each module; see registry.py."""
