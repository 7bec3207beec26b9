"""Frames of a detector: where they lie, where the beam hits them, what is wrong with their pixels.

Begin at raw_frames.py.
"""
