"""Provide matrix products: dense, integer, weight-only quantized, sparse."""
