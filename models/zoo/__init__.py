"""Provide networks that edgec trained itself.

And graphs that it writes around the weights of others.
"""
