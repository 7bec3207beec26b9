"""Whole runs: commands, checkpoints, what disturbs training, long histories."""
