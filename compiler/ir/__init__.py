"""The language that all stages speak: signatures, graphs of Relax, operators, layouts, programs."""
