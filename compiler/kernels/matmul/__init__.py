"""Matrix products: dense, integer, weight-only quantized, sparse."""
