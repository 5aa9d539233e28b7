"""Provide the command line, one verb a file: the only code that prints or exits."""
