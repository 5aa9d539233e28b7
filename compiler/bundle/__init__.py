"""Describe what ships: the manifest, the files beside it, and the program that runs them."""
