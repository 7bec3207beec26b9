"""`rehearsal-kit compare`: all strategies on the same stream, with their costs.

Begin at command.py. Imports session and all below it.
"""
