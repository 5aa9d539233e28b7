"""Provide the steps of compression, one a file: settings and what it does."""
