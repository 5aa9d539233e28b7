"""Provide running a compiled library in this process."""
