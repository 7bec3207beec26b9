"""Figures of GPUs, each beside its limit: sessions that train in turns, and what the card itself can do."""
