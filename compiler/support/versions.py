"""Provide versions of what a result depends on."""

import importlib.metadata

TOOLS = ("apache-tvm", "apache-tvm-ffi", "edgec", "numpy", "onnx", "onnxruntime", "onnxscript")


def tool_versions() -> dict[str, str]:
    """Return the version of each tool by the name of its package."""
    return {name: importlib.metadata.version(name) for name in TOOLS}
