"""Samples, what a graph makes of them, and what is measured on that: ranges, moments, accuracy."""
