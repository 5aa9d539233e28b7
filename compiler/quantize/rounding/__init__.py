"""Describe how weights are rounded, and what is corrected after that."""
