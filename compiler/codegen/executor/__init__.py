"""The static executor: C sources that every compiled library contains."""

from pathlib import Path

FOLDER = Path(__file__).parent
HEADERS = ("edgec.h", "program.h")
# In this order they make one file, after a program's tables.
SOURCES = ("threads.c", "executor.c", "ffi.c")
# What a library shows to those who load it.
EXPORTS = ("edgec_*", "__tvm_ffi_edgec_*")
