"""Provide one seam for work: a `concurrent.futures.Executor`, here or on a cluster of Dask."""
