"""Convolutions: direct, Winograd, integer, depthwise, transposed, sparse."""
