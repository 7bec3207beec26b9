"""Scans on disk: one file per layout."""
