"""Provide samples, what a graph makes of them, and what is measured on that.

Ranges, moments, accuracy.
"""
