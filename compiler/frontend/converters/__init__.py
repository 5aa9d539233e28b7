"""Provide converters of our own, one file per operator family."""
