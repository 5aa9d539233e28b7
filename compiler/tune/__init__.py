"""Search for the fastest decision of every kernel of a model, on the host or on boards.

Every trial runs inside the model: a round chooses one decision for each kernel, builds the model
with them and times each call in place, so caches hold what they will hold later, and one run
measures as many decisions as the model has kernels.

tasks.py      the kernels of a model
search.py     which decisions to try next
cost_model.py what a decision will take, learned from those that were measured
rounds.py     a program with the decisions of a round, built
measure.py    runs it here, in a process of its own
devices.py    the host and boards as places to measure
session.py    the loop: choose, build, measure, write down
report.py     the report as HTML
"""
