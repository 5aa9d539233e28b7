"""Damaged models and bundles end in an error of ours: no crash, no hang, no gigabytes.

Some two hundred here; `tests/benchmarks/fuzz_files.py`, whose workers these are, does thousands.
"""

from pathlib import Path

import onnx
from benchmarks.fuzz_files import fuzz
from support.fuzz import base_models

from edgec.compiler import compile_model


def test_damaged_models_are_refused_quickly() -> None:
    assert fuzz("model", 80, None) == []


def test_damaged_bundles_are_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(base_models()[0], path)
    bundle = compile_model(path, output=tmp_path / "model.edgec")
    assert fuzz("bundle", 120, bundle.path) == []
