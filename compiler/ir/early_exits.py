"""Provide what early exits are called in a graph and in a program."""

# Calls of functions of these names, with a number behind, decide whether an exit answers.
DECISION = "early_exit_"
# The output that says which exit answered: 0 the whole model, 1 the first exit, and so on.
ANSWERED_BY = "early_exit"
