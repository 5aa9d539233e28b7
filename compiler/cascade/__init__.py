"""Cascades: a small model that answers where it is sure, and a large one for the rest."""
