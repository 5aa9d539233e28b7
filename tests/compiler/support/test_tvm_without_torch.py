"""TVM is loaded without PyTorch, unless that is there already."""

import sys
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import pytest

import edgec.compiler  # noqa: F401  installs the finder
from edgec.compiler.support.tvm_without_torch import _Finder

READS = """
try:
    import torch
except ImportError:
    torch = None
"""


def load(folder: Path) -> ModuleType:
    """Load a stand-in for TVM that reads PyTorch where it is."""
    (folder / "tvm.py").write_text(READS, encoding="utf-8")
    [finder] = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    spec = finder.find_spec("tvm", [str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_is_hidden_while_tvm_loads_and_not_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert load(tmp_path).torch is None
    assert "torch" not in sys.modules


def test_torch_that_is_loaded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert load(tmp_path).torch is torch
    assert sys.modules["torch"] is torch


def test_other_modules_are_found_as_ever() -> None:
    assert _Finder().find_spec("numpy", None) is None
