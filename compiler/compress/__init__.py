"""Provide compression of the canonical module: fewer weights, channels and layers.

And correction of the error.

A recipe is a list of steps; each step is one file that holds its settings and what it does. The
phase (`compressor`) applies them in order and measures the model after each.
"""
