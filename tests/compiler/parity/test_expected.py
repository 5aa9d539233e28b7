"""The tolerance of a quantized model whose exits answer otherwise than the original."""

from dataclasses import replace

import numpy as np

from edgec.compiler.ir.signature import Signature, TensorSpec
from edgec.compiler.parity.compare import QUANTIZED_SQNR_DB, Tolerance
from edgec.compiler.parity.expected import Expected
from edgec.compiler.parity.stream import Step

SPEC = TensorSpec("y", (1, 64), "float32")
VALUES = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)


def test_the_answer_of_an_exit_does_not_loosen_the_tolerance() -> None:
    original = Expected(Signature((), (SPEC,)), (Step({}, {"y": VALUES}),), Tolerance(1e-5, 0), {})
    exited = original.of_transformed((Step({}, {"y": -VALUES}),), True)
    assert exited.tolerance.sqnr_db is not None
    assert exited.tolerance.sqnr_db < 5
    for outputs in ({"y": VALUES * 1.001}, None):
        found = original.rounded_as(exited, outputs, True)
        assert found.tolerance == replace(original.tolerance, sqnr_db=QUANTIZED_SQNR_DB)
        assert found.outputs["y"] is exited.outputs["y"]
    assert original.rounded_as(exited, None, False).tolerance == original.tolerance
