"""Hold the sources in C that choose among the variants of a model."""

from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("governor.c", "signals.c", "options_file.c", "race.c")
FILES = (*SOURCES, "governor.h")
