"""Predict what a model costs on a target: time, memory, size and energy, without the board."""
