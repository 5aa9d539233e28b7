"""Derivatives of a graph, for the steps that weigh or train."""
