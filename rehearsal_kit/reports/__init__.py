"""Pure functions of timelines: measures, tables, figures, pictures, an HTML report.

Begin at measures.py. Knows neither ranks nor buffers. Imports record and base.
"""
