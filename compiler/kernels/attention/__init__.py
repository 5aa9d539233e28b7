"""Kernels of attention over a cache whose length is only known at run time."""
