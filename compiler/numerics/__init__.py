"""Provide arithmetic of quantization and pruning, in NumPy alone."""
