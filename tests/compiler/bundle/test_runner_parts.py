"""The C parts of the runner, one by one: its comparison and its files against Python's."""

import ctypes
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edgec.compiler.bundle.npy import save_npy
from edgec.compiler.bundle.runner import EXECUTOR, FOLDER
from edgec.compiler.codegen.link import link_shared
from edgec.compiler.ir.storage import STORAGE, decode_table
from edgec.compiler.parity.compare import Tolerance, compare
from edgec.compiler.runtime.library import TensorStruct
from edgec.targets import load_target


class _Tensor(TensorStruct):
    @classmethod
    def of(cls, array: np.ndarray) -> "_Tensor":
        shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        return cls(b"x", str(array.dtype).encode(), array.ndim, shape, array.nbytes)


class _Tolerance(ctypes.Structure):
    _fields_ = (
        ("relative", ctypes.c_double),
        ("absolute", ctypes.c_double),
        ("sqnr_db", ctypes.c_double),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("max_error", ctypes.c_double),
        ("allowed_share", ctypes.c_double),
        ("problem", ctypes.c_char_p),
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("parts")
    for name in ("npy.c", "npy.h", "parity.c", "parity.h"):
        shutil.copyfile(FOLDER / name, folder / name)
    shutil.copyfile(EXECUTOR / "edgec.h", folder / "edgec.h")
    library = folder / "parts.so"
    link_shared([folder / "npy.c", folder / "parity.c"], library, load_target("native"))
    loaded = ctypes.CDLL(str(library))
    loaded.parity_compare.restype = _Result
    return loaded


NUMPY_DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
DTYPES = (*NUMPY_DTYPES, "bfloat16", *sorted(STORAGE))


def values(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Finite values of a dtype, rows of different magnitude among them."""
    random = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind in "iu" and dtype in NUMPY_DTYPES:
        info = np.iinfo(kind)
        return random.integers(info.min, info.max, shape, kind, endpoint=True)
    rows = np.arange(1, shape[0] + 1 if shape else 2).reshape(-1, *[1] * (len(shape) - 1))
    array = np.abs(random.standard_normal(shape)) * (rows if shape else 1)
    if dtype.startswith(("int", "uint")):
        array = array % (ml_dtypes.iinfo(dtype).max + 1)
    return np.asarray(array).astype(kind)


def nearly(array: np.ndarray, seed: int) -> np.ndarray:
    """Another value of an integer, others of floats, some of them within the tolerance."""
    if array.dtype.kind in "iub":
        other = array.copy()
        other.reshape(-1)[:1] ^= True
        return other
    factor = 1 + 0.03 * np.random.default_rng(seed).random(array.shape) * (seed % 2)
    return np.asarray(array.astype(np.float64) * factor).astype(array.dtype)


@pytest.mark.parametrize("tolerance", [Tolerance(0.02, 0.001), Tolerance(0.001, 1e-6, 30.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_comparison_is_that_of_verify(parts: ctypes.CDLL, dtype: str, tolerance: Tolerance) -> None:
    failed = 0
    for seed, shape in enumerate([(7, 90), (3, 70, 2), (2, 5), (1,), (), (4, 0)]):
        expected = values(dtype, shape, seed)
        for actual in (expected.copy(), nearly(expected, seed), values(dtype, shape, 99)):
            failed += check_comparison(parts, expected, actual, tolerance)
    assert failed > 0


def check_comparison(
    parts: ctypes.CDLL, expected: np.ndarray, actual: np.ndarray, tolerance: Tolerance
) -> bool:
    (wanted,) = compare({"x": expected}, {"x": actual}, tolerance).outputs
    dtype = str(expected.dtype)
    codes = None
    if dtype in STORAGE:
        codes = (ctypes.c_double * 256)(*decode_table(dtype, "float64").tolist())
    tensor = _Tensor.of(expected)
    found = parts.parity_compare(
        ctypes.byref(tensor),
        ctypes.c_void_p(expected.ctypes.data),
        ctypes.c_void_p(actual.ctypes.data),
        codes,
        _Tolerance(tolerance.relative, tolerance.absolute, tolerance.sqnr_db or math.inf),
    )
    assert (found.problem is None) == wanted.passed, (found.problem, wanted.problem)
    assert found.max_error == pytest.approx(wanted.max_error, rel=1e-12)
    assert found.allowed_share == pytest.approx(wanted.allowed_share, rel=1e-12)
    return not wanted.passed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_special_floats(parts: ctypes.CDLL, dtype: str) -> None:
    special = np.array([0, -0.0, np.inf, -np.inf, 1e-7, 6e-5, -3, 65504]).astype(dtype)
    for actual in (special, -special, special[::-1].copy(), np.full_like(special, np.nan)):
        check_comparison(parts, special, actual, Tolerance(1e-3, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 4), (2, 0)])
def test_files_of_every_dtype(
    parts: ctypes.CDLL, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    """What NumPy writes is read, what is written NumPy reads."""
    array = values(dtype, shape, 5)
    plain = tmp_path / "plain.npy"
    plain.write_bytes(save_npy(array))
    message = ctypes.create_string_buffer(1024)
    tensor, read = _Tensor.of(array), np.zeros_like(array)
    for call, path, memory in (
        (parts.npy_read, plain, read),
        (parts.npy_write, tmp_path / "again.npy", read),
    ):
        status = call(
            str(path).encode(),
            ctypes.byref(tensor),
            ctypes.c_void_p(memory.ctypes.data),
            message,
            ctypes.c_size_t(1024),
        )
        assert status == 0, message.value
    assert read.tobytes() == array.tobytes()
    assert (tmp_path / "again.npy").read_bytes() == plain.read_bytes()


def test_every_half_is_read_as_a_float(parts: ctypes.CDLL, tmp_path: Path) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    expected = halves.astype(np.float32)
    read = np.zeros(2**16, np.float32)
    tensor = _Tensor.of(read)
    message = ctypes.create_string_buffer(256)
    path = tmp_path / "x.npy"
    np.save(path, halves)
    arguments = (ctypes.byref(tensor), read.ctypes.data_as(ctypes.c_void_p), message)
    assert parts.npy_read(str(path).encode(), *arguments, ctypes.c_size_t(256)) == 0
    np.testing.assert_array_equal(read, expected)
    numbers = ~np.isnan(expected)
    assert read[numbers].tobytes() == expected[numbers].tobytes()
    path.write_bytes(path.read_bytes()[:-1])
    assert parts.npy_read(str(path).encode(), *arguments, ctypes.c_size_t(256)) == -1
    assert b"does not hold the 131072 bytes" in message.value
