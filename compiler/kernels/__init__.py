"""Provide kernel templates: our own code for the operators that networks spend their time in.

Each template has a workload (what is computed, on which shapes), a space of decisions (how), an
analytic default among them, and a function that writes the code. Tuning searches the same space.
"""
