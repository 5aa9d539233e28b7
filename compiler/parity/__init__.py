"""Is it right: comparisons, the oracle, and where a graph first differs."""
