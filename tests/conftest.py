"""Which tests are slow, beside those that say so, and the core that each worker keeps to."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Files and folders that take more than some ten seconds on a calm machine, as their tests compile,
# build or tune whole models, or are many.
SLOW = (
    "compiler/bench/test_compare.py",
    "compiler/boards",
    "compiler/bundle/test_runner.py",
    "compiler/cli/test_compile.py",
    "compiler/codegen/test_executor.py",
    "compiler/compress/steps",
    "compiler/compress/test_reconstruct.py",
    "compiler/compress/test_staged_model.py",
    "compiler/frontend/converters",
    "compiler/frontend/test_hostile_files.py",
    "compiler/frontend/test_quantized_models.py",
    "compiler/kernels/conv/test_direct.py",
    "compiler/kernels/conv/test_integer.py",
    "compiler/kernels/conv/test_integer_depthwise.py",
    "compiler/kernels/conv/test_weight_only.py",
    "compiler/kernels/conv/test_winograd.py",
    "compiler/kernels/emit/test_vector_math.py",
    "compiler/kernels/matmul/test_dense.py",
    "compiler/kernels/matmul/test_weight_only.py",
    "compiler/kernels/test_elementwise.py",
    "compiler/kernels/test_integer_elementwise.py",
    "compiler/kernels/test_layout.py",
    "compiler/kernels/test_pool.py",
    "compiler/kernels/test_sparse_lists.py",
    "compiler/parity/test_zoo_parity.py",
    "compiler/quantize/rounding",
    "compiler/quantize/test_compile.py",
    "compiler/quantize/test_digits.py",
    "compiler/quantize/test_dynamic.py",
    "compiler/quantize/test_embeddings.py",
    "compiler/quantize/test_equalize.py",
    "compiler/quantize/test_float_fallbacks.py",
    "compiler/quantize/test_integers_everywhere.py",
    "compiler/quantize/test_memory.py",
    "compiler/quantize/test_shared_weights.py",
    "compiler/quantize/test_smooth.py",
    "compiler/quantize/test_unusual_outputs.py",
    "compiler/runtime",
    "compiler/test_pipeline.py",
    "compiler/tune/test_tune.py",
    "compiler/tune/test_tune_boards.py",
    "conformance",
    "models",
    "test_fuzz_operators.py",
)


def pytest_configure() -> None:
    """Give each worker of pytest-xdist a core of its own.

    Models, ONNX Runtime and BLAS would else compute on every core in every worker, and threads that
    wait for one another's turn cost minutes.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those files."""
    gone = [name for name in SLOW if not (TESTS / name).exists()]
    if gone:
        raise pytest.UsageError(f"tests/conftest.py: SLOW names what is not there: {gone}")
    for item in items:
        path = item.path.relative_to(TESTS)
        if any(path.is_relative_to(name) for name in SLOW):
            item.add_marker(pytest.mark.slow)
