"""Linked files have every function that they call."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from onnx import TensorProto
from support.onnx_graphs import make_model, node, save

from edgec.compiler import compile_model
from edgec.compiler.codegen.executor import FOLDER
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.errors import ToolchainError
from edgec.compiler.options import CompileOptions
from edgec.targets import load_target


@pytest.mark.parametrize("target", ["rpi3-32bit", "rpi4", "x86-64-v3"])
def test_a_function_that_nothing_has_is_refused(target: str, tmp_path: Path) -> None:
    source = tmp_path / "code.c"
    source.write_text("int absent(int); int f(int x) { return absent(x); }")
    with pytest.raises(ToolchainError, match=r"linking for .* failed: .*absent"):
        link_shared([source], tmp_path / "made.so", load_target(target))


def test_a_program_that_loads_a_library_may_bring_functions(tmp_path: Path) -> None:
    source = tmp_path / "code.c"
    source.write_text("int absent(int); int f(int x) { return absent(x); }")
    link_shared([source], tmp_path / "made.so", load_target("rpi4"), complete=False)


@pytest.mark.parametrize("float_dtype", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("wide_dtype", [TensorProto.INT64, TensorProto.UINT64])
def test_conversions_of_64_bits_on_32(float_dtype: int, wide_dtype: int, tmp_path: Path) -> None:
    """LLVM calls a function for each, which the runner's link would miss, too."""
    nodes = [
        node("Cast", ["x"], ["wide"], to=wide_dtype),
        node("Mul", ["wide", "factor"], ["product"]),
        node("Div", ["product", "wide"], ["quotient"]),
        node("Cast", ["quotient"], ["y"], to=float_dtype),
    ]
    factor = np.array(7, {TensorProto.INT64: np.int64, TensorProto.UINT64: np.uint64}[wide_dtype])
    dtypes = dict.fromkeys("xy", float_dtype)
    model = make_model(nodes, {"x": [5]}, ["y"], {"factor": factor}, dtypes=dtypes)
    numpy_dtype = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64}[float_dtype]
    options = CompileOptions(runner=True, inputs={"x": np.arange(1, 6, dtype=numpy_dtype)})
    path = save(model, tmp_path)
    bundle = compile_model(path, "rpi3-32bit", options, output=tmp_path / "x.edgec")
    with bundle.library.open("rb") as stream:
        symbols = list(ELFFile(stream).get_section_by_name(".dynsym").iter_symbols())
    unresolved = {symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"}
    assert not {name for name in unresolved if name.startswith(("__fix", "__float"))}
    assert "free" in unresolved


def test_halves_of_processors_without_them(tmp_path: Path) -> None:
    """To the nearest, ties to even: all halves, what lies between them, and what is beyond."""
    source = tmp_path / "halves.c"
    source.write_text(
        f"""#define __riscv 1
#include "{FOLDER / "conversions.c"}"
void halves(const float* x, _Float16* y, int n) {{
  for (int i = 0; i < n; i++) y[i] = __truncsfhf2(x[i]);
}}"""
    )
    library = tmp_path / "halves.so"
    link_shared([source], library, load_target("native"))
    exact = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ordered = np.sort(exact[np.isfinite(exact)])
    between = (ordered[1:] + ordered[:-1]) / 2
    around = [np.nextafter(between, np.float32(end)) for end in (-np.inf, np.inf)]
    values = np.concatenate([exact, between, *around, np.float32([65519, 65520, 1e30, 1e-40])])
    found = np.empty(len(values), np.float16)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (values, found)]
    ctypes.CDLL(str(library)).halves(*pointers, len(values))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, values.astype(np.float16))
