"""Predict what a model costs on a target: the entry for models, programs and single operators."""

from collections.abc import Mapping
from types import MappingProxyType

from tvm import IRModule

from edgec.compiler.ir.program import Program
from edgec.compiler.ir.signature import Signature
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.predict.prediction import Estimate, Prediction
from edgec.targets import Target


def predict_program(
    program: Program,
    target: Target,
    database: Database | None = None,
    *,
    threads: int = 1,
    library_bytes: int | None = None,
) -> Prediction:
    """Predict what a scheduled program costs.

    Args:
        program: what `schedule` gave, its states kept.
        target: what it was scheduled for.
        database: tuning records beside those that come with edgec.
        threads: the threads that share the tasks.
        library_bytes: the size of its library, if it was compiled.
    """
    raise NotImplementedError


def predict(
    module: IRModule,
    signature: Signature,
    target: Target,
    database: Database | None = None,
    *,
    threads: int = 1,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Prediction:
    """Predict what a canonical module costs (`canonical_model(...).module`, or a transformed one).

    Args:
        module: the module.
        signature: inputs and outputs.
        target: where it is to run.
        database: tuning records beside those that come with edgec.
        threads: the threads that share the tasks.
        names: ONNX names by those of variables (`CanonicalModel.value_names`).

    Raises:
        UnsupportedModelError: shapes depend on data.
    """
    raise NotImplementedError


def operator_times(
    module: IRModule,
    signature: Signature,
    target: Target,
    database: Database | None = None,
    *,
    threads: int = 1,
    names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Estimate]:
    """Predict the time of each kernel of a canonical module, by the ONNX name of its result.

    A kernel computes what leads from the results of others to that value; arguments and errors
    are those of `predict`.
    """
    raise NotImplementedError
