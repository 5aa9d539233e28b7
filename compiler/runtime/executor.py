"""Provide the names of what runs a model; needs nothing else, so that manifests can name it."""

from typing import Literal

Executor = Literal["static", "machine"]
"""What runs a model: its own library, or TVM's Relax virtual machine."""
