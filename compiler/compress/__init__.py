"""Compression of the canonical module: fewer weights, channels, layers, and repair of the loss.

A recipe is a list of steps; each step is one file that holds its settings and what it does. The
phase (`compressor`) applies them in order and measures the model after each.
"""
