"""Inputs are checked, and generated in the domain of the model."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import compile_model
from edgec.compiler.errors import TensorInputError
from edgec.compiler.ir.signature import TensorSpec
from edgec.compiler.runtime.inputs import DOMAINS, generate_inputs


def test_an_index_beyond_its_table_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime refuses it, too; negative ones count from the end."""
    table = random(5, 3)
    model = make_model(
        [node("Gather", ["t", "i"], ["y"])],
        {"i": [2]},
        ["y"],
        {"t": table},
        dtypes={"i": TensorProto.INT64},
    )
    bundle = compile_model(save(model, tmp_path), output=tmp_path / "b.edgec")
    result = bundle.run({"i": np.array([4, -5])})["y"]
    np.testing.assert_array_equal(result, table[[4, 0]])
    for wrong in (5, -6, 2**40):
        with pytest.raises(TensorInputError, match=f"input i holds the index {wrong}; .* -5 to 4"):
            bundle.run({"i": np.array([0, wrong])})


@pytest.mark.parametrize("domain", DOMAINS)
def test_generated_floats_fit_half_the_bytes(domain: str) -> None:
    (array,) = generate_inputs([TensorSpec("x", (100,), "float32")], 0, {}, domain).values()
    np.testing.assert_array_equal(array.astype(np.float16).astype(np.float32), array)
    assert (array.min() > 0) == (domain != "any")
