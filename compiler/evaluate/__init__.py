"""Evaluate bundles on data: accuracy, latency, memory, size and energy, side by side."""
