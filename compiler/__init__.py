"""The compiler: from an ONNX file to a verified bundle.

The public names are loaded when they are first used, so that importing a part that needs no
TVM (targets, manifests, parity) stays fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgec.compiler.bundle.bundle import Bundle
    from edgec.compiler.errors import EdgecError
    from edgec.compiler.inspection import inspect_path
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.parity.verify_bundle import verify_bundle
    from edgec.compiler.pipeline import compile_model
    from edgec.compiler.quantize.options import QuantizeOptions
    from edgec.compiler.quantize.recipe import load_recipe

_HOME = {
    "Bundle": "bundle.bundle",
    "CompileOptions": "options",
    "EdgecError": "errors",
    "QuantizeOptions": "quantize.options",
    "compile_model": "pipeline",
    "inspect_path": "inspection",
    "load_recipe": "quantize.recipe",
    "verify_bundle": "parity.verify_bundle",
}

__all__ = [
    "Bundle",
    "CompileOptions",
    "EdgecError",
    "QuantizeOptions",
    "compile_model",
    "inspect_path",
    "load_recipe",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
