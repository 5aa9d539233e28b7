"""Provide convolutions: direct, Winograd, integer, depthwise, transposed, sparse."""
