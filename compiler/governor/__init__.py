"""Choose among the variants of one model while it runs."""
