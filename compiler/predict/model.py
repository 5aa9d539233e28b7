"""Predict what a model file costs on a target, from reading it on."""

import tempfile
from dataclasses import replace
from pathlib import Path

from edgec.compiler.backend import build
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.model_argument import as_path
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.states import find_states
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.predict.predict import predict_program, scheduled_program
from edgec.compiler.predict.prediction import Prediction
from edgec.compiler.support.limits import check_threads
from edgec.targets import Target, load_target


def predict_model(
    model: str | Path,
    target: str | Path | Target = "native",
    options: CompileOptions | None = None,
    *,
    threads: int = 1,
    compile_library: bool = False,
) -> Prediction:
    """Predict what an ONNX model costs on a target, without the board.

    Args:
        model: the file.
        target: a target, its name, or the path of a target file.
        options: shapes, frozen inputs and tuning records; what changes a model's numbers is left
            to `predict`.
        threads: the threads that share the kernels' tasks, at most the cores of the target.
        compile_library: compile the library, whose size is exact then.

    Raises:
        EdgecError: the file is wrong, or its shapes are open or depend on data.
    """
    check_threads(threads)
    path = as_path(model, "predict_model")
    options = options or CompileOptions()
    target = target if isinstance(target, Target) else load_target(target)
    database = Database.read(options.records) if options.records is not None else None
    variant = options.one_program("inspect")
    source = read_model(
        path, options.limits, options.context, cache=options.cache, lora=options.adapters
    )
    canonical = canonical_model(
        source, variant.shapes, options.freeze, options.limits, images=options.images
    )
    states = find_states(canonical.signature, options.kept_states)
    program = scheduled_program(
        canonical.module, canonical.signature, target, database, canonical.value_names, states
    )
    size = None
    if compile_library:
        with tempfile.TemporaryDirectory(prefix="edgec-predict-") as folder:
            library = Path(folder) / "model.so"
            build([program], target, library)
            size = library.stat().st_size
    found = predict_program(
        program, target, database, threads=threads or target.cores, library_bytes=size
    )
    remarks = database.remarks(target) if database is not None else ()
    return replace(found, warnings=(*found.warnings, *remarks))
