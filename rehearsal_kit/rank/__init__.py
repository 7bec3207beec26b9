"""One rank of a run: the training loop, and what it does at a step boundary.

    step, step, ... | boundary: rank 0 reads commands, all ranks prepare and vote, the ledger is written

Begin at training_loop.py, then decisions.py. Imports learning and all below it; knows neither Dask
nor screens.
"""
