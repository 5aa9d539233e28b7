"""Arithmetic of quantization and pruning, in NumPy alone."""
