"""Calibrate a model on data that stay where they are: secure sums of statistics over clients."""
