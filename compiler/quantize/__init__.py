"""Quantize: recipes, calibration, and what a model loses by it.

The arithmetic, the recipes, the observers and the samples need only NumPy; what looks at a graph
imports TVM.
"""
