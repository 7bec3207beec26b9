"""A stand-in for NVIDIA's Python packages, as much of them as dask-cuda needs."""
