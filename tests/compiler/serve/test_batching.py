"""Programs that differ in their number of rows answer requests together, if rows are rows."""

from pathlib import Path

from support.onnx_graphs import make_model, node, save

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.serve.batching import batch_sizes, rows_are_independent


def signature(*shape: int, output: tuple[int, ...]) -> Signature:
    return Signature((TensorSpec("x", shape, "float32"),), (TensorSpec("y", output, "float32"),))


def test_batches_are_programs_that_differ_in_rows_only() -> None:
    one, four = signature(1, 8, output=(1, 3)), signature(4, 8, output=(4, 3))
    assert batch_sizes([four, one]) == ((1, 4), "")
    assert batch_sizes([one])[0] == ()
    assert batch_sizes([one, signature(4, 9, output=(4, 3))])[0] == ()
    assert batch_sizes([one, signature(4, 8, output=(1, 3))])[0] == ()


def test_sequences_are_no_batches(tmp_path: Path) -> None:
    """A softmax over the first axis makes every row depend on all."""
    nodes = [node("Softmax", ["x"], ["y"], axis=0)]
    model = make_model(nodes, {"x": ["rows", 8]}, ["y"])
    options = CompileOptions(programs={"one": {"x": (1, 8)}, "four": {"x": (4, 8)}})
    bundle = compile_model(save(model, tmp_path), "native", options, output=tmp_path / "m.edgec")
    signatures = list(bundle.manifest.signatures.values())
    assert batch_sizes(signatures)[0] == (1, 4)
    assert not rows_are_independent(bundle.open(threads=1), signatures, {})
