"""Provide the static executor: C sources of what every compiled library contains."""

from pathlib import Path

FOLDER = Path(__file__).parent
HEADERS = ("edgec.h", "program.h")
# They make one file, `UNIT`.
UNIT = "unit.c"
SOURCES = ("cores.c", "threads.c", "executor.c", "ffi.c", "conversions.c")
# What a library shows to those who load it.
EXPORTS = ("edgec_model_*", "edgec_loaded_model", "__tvm_ffi_edgec_*")


def soname(name: str) -> str:
    """Return the name by which the dynamic loader tells a model's library from others.

    A program that links the library needs a file of this name in its folder.
    """
    return f"libedgec_{name}.so"
