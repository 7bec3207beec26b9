"""The dashboard: the only place that knows ipywidgets.

Begin at panel.py. Everything it shows comes from a session's timeline, everything it does is a method
of the session.
"""
