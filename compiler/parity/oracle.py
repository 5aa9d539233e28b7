"""What the model should give: ONNX Runtime on the original graph.

With its graph optimizations off, ONNX Runtime computes operator by operator what the file
says. Where it lacks an operator, the reference evaluator of the onnx package answers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.errors import ModelFileError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.support.onnx_runtime import open_onnx_session, run_onnx_session


def run_original(model: Path | onnx.ModelProto, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX model by name.

    Args:
        model: file, or a model in memory.
        inputs: every input of the graph that has no initializer, by name.

    Raises:
        ModelFileError: neither runtime can run the model on these inputs.
    """
    try:
        # Inside: a model of more than 2 GiB does not serialize.
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        return run_onnx_session(open_onnx_session(source), inputs)
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but this one.
        return _run_reference(model, inputs, str(error))


def _run_reference(
    model: Path | onnx.ModelProto, inputs: Tensors, why: str
) -> dict[str, NDArray[Any]]:
    try:
        evaluator = onnx.reference.ReferenceEvaluator(
            str(model) if isinstance(model, Path) else model
        )
        results = evaluator.run(None, dict(inputs))
    except Exception as error:
        raise ModelFileError(
            "the original graph cannot be run on the test inputs: ONNX Runtime says "
            f"{_one_line(why)}; the reference evaluator says {_one_line(str(error))}"
        ) from error
    values = (np.asarray(value) for value in results)
    return dict(zip(evaluator.output_names, values, strict=True))


def _one_line(message: str) -> str:
    return " ".join(message.split())[:300]
