"""Provide derivatives of a graph, for the steps that weigh or train."""
