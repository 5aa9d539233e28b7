"""Provide the C interface of a compiled library (codegen/executor/edgec.h) for Python.

By ctypes alone.

Calls of its functions let other Python threads run meanwhile.
"""

import ctypes
from typing import Any

ABI = 5
BAD_INDEX = -2
OTHER_STATE = -3
Pointers = ctypes.POINTER(ctypes.c_void_p)


class StepInfoStruct(ctypes.Structure):
    """A step info struct is `edgec_step_info`."""

    _fields_ = (
        ("label", ctypes.c_char_p),
        ("template", ctypes.c_char_p),
        ("flops", ctypes.c_int64),
    )


class TensorStruct(ctypes.Structure):
    """A tensor struct is `edgec_tensor`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


class ProgramStruct(ctypes.Structure):
    """A program struct is `edgec_program`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(TensorStruct)),
        ("outputs", ctypes.POINTER(TensorStruct)),
        ("index_bounds", ctypes.POINTER(ctypes.c_int64)),
        ("step_count", ctypes.c_int32),
    )


class ModelStruct(ctypes.Structure):
    """A model struct is `edgec_model`."""

    _fields_ = (
        ("abi", ctypes.c_int32),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(TensorStruct)),
        ("outputs", ctypes.POINTER(TensorStruct)),
        ("arena_bytes", ctypes.c_size_t),
        ("open", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int32)),
        ("close", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("threads", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)),
        ("run", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, Pointers, Pointers)),
        (
            "run_timed",
            ctypes.CFUNCTYPE(
                *(ctypes.c_int32, ctypes.c_void_p, Pointers, Pointers),
                ctypes.POINTER(ctypes.c_uint64),
            ),
        ),
        ("step_count", ctypes.c_int32),
        ("step", ctypes.CFUNCTYPE(StepInfoStruct, ctypes.c_int32)),
        ("index_bounds", ctypes.POINTER(ctypes.c_int64)),
        ("error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)),
        ("program_count", ctypes.c_int32),
        ("programs", ctypes.POINTER(ProgramStruct)),
        (
            "run_program",
            ctypes.CFUNCTYPE(
                *(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, Pointers, Pointers),
                ctypes.POINTER(ctypes.c_uint64),
            ),
        ),
        ("program_step", ctypes.CFUNCTYPE(StepInfoStruct, ctypes.c_int32, ctypes.c_int32)),
        ("state_count", ctypes.c_int32),
        ("states", ctypes.POINTER(TensorStruct)),
        ("state", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)),
        ("reset", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("saved_bytes", ctypes.c_size_t),
        ("save", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)),
        (
            "restore",
            ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
        ),
        ("use_threads", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)),
    )


def load_model(library: str) -> Any:
    """Load a library and return its `ModelStruct`, which keeps the library loaded.

    Raises:
        OSError: it cannot be loaded.
        RuntimeError: it is of another version of the interface, or no library of edgec.
    """
    loaded = ctypes.CDLL(library)
    try:
        loaded.edgec_loaded_model.restype = ctypes.POINTER(ModelStruct)
    except AttributeError:
        raise RuntimeError(
            f"it does not have interface version {ABI}; compile the model again"
        ) from None
    model = loaded.edgec_loaded_model().contents
    if model.abi != ABI:
        raise RuntimeError(f"its interface is version {model.abi}, expected {ABI}")
    return model


def pointers(arrays: Any) -> Any:
    """Return addresses of NumPy arrays, as `run` of `ModelStruct` takes them."""
    return (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))
