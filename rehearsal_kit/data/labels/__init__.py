"""Labels for scans without a reconstruction: phase retrieval by a library, and files that keep it.

Begin at phase_retrieval.py; cdtools_fit.py is the only file that knows the library.
"""
