"""Provide the search for a version of a model that keeps what its user can afford."""
