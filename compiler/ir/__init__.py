"""Provide the language that all stages speak.

Signatures, graphs of Relax, operators, layouts, programs.
"""
