"""What everybody may use and what knows nothing of the rest.

Errors and how they are said, settings, keyed randomness, private files that are whole or not there,
process groups. Begin at errors.py and settings.py. Imports nothing of this package.
"""
