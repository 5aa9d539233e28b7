"""Decide which channels depend on each other, and how salient each is."""
