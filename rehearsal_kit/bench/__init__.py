"""`rehearsal-kit bench`: ratios measured side by side in one run.

Begin at command.py. store/ measures the buffer beside other libraries, ranks/ steps of real ranks, run/
whole runs: commands, checkpoints, disturbances, long histories; gpu/ GPUs, by ranks that train in turns.
"""
