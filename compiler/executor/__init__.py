"""The static executor: C sources that every compiled library contains."""

from pathlib import Path

FOLDER = Path(__file__).parent
HEADERS = ("edgec.h", "program.h")
SOURCES = ("executor.c", "threads.c", "ffi.c")
