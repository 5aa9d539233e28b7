"""Provide TVM that does not load PyTorch.

TVM imports PyTorch where that is installed (it comes with NNCF, for one): 0.4 GB of memory and
more time than TVM itself takes, for tensors that edgec never hands over. Who imported PyTorch
before keeps what TVM does with it; who imports it later gets it as ever.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_READERS = ("tvm", "tvm_ffi")
_HIDDEN = "torch"


class _WithoutTorch(SourceFileLoader):
    """The loader hides PyTorch while it runs a module."""

    def exec_module(self, module: ModuleType) -> None:
        if _HIDDEN in sys.modules:
            super().exec_module(module)
            return
        # None makes an import fail.
        sys.modules[_HIDDEN] = None  # type: ignore[assignment]
        try:
            super().exec_module(module)
        finally:
            del sys.modules[_HIDDEN]


class _Finder(MetaPathFinder):
    """The finder gives TVM's packages that loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _READERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _WithoutTorch(spec.loader.name, spec.loader.path)
        return spec


def hide_torch_from_tvm() -> None:
    """Have TVM, whenever it is imported from now on, leave PyTorch alone."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
