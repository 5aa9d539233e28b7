"""Provide the compiler: from an ONNX file to a verified bundle, and what is done with bundles.

Each verb of the command line is one call here. The names are loaded when they are first used, so
that importing a part that needs no TVM (targets, manifests, parity) stays fast.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from edgec.compiler.support.tvm_without_torch import hide_torch_from_tvm

if TYPE_CHECKING:
    from edgec.compiler.bench.compare import BenchReport, bench_bundles
    from edgec.compiler.boards.deploy import DeployReport, deploy_bundle
    from edgec.compiler.boards.run import bench_on, run_bundle, verify_on
    from edgec.compiler.bundle.bundle import Bundle, sign_bundle
    from edgec.compiler.calibration.samples import SampleOptions
    from edgec.compiler.compress.compression_recipe import load_compression
    from edgec.compiler.compress.options import CompressOptions
    from edgec.compiler.distribute.cascade_link import open_cascade
    from edgec.compiler.distribute.plan_session import PlanSession
    from edgec.compiler.distribute.plan_set import PlanSet
    from edgec.compiler.errors import EdgecError
    from edgec.compiler.evaluate.advice import AdviceLimits, Candidate, advise
    from edgec.compiler.evaluate.evaluation import (
        Evaluation,
        EvaluationOptions,
        evaluate_bundles,
    )
    from edgec.compiler.evaluate.make_cascade import make_cascade
    from edgec.compiler.exits.options import ExitOptions
    from edgec.compiler.fit.api import fit_model
    from edgec.compiler.fit.fit_report import FitReport
    from edgec.compiler.fit.limits import Limits
    from edgec.compiler.fit.options import FitOptions
    from edgec.compiler.frontend.preprocessing import ImageInput, Preprocess
    from edgec.compiler.generation.generator import Generator
    from edgec.compiler.generation.sampling import Sampling
    from edgec.compiler.governor.governor import GovernorSettings
    from edgec.compiler.governor.variants import Variant
    from edgec.compiler.inspection import ModelReport, inspect_path
    from edgec.compiler.installation import govern_bundle, install_bundle
    from edgec.compiler.jobs.pool import JobOptions
    from edgec.compiler.options import CompileOptions
    from edgec.compiler.parity.verify_bundle import verify_bundle
    from edgec.compiler.pipeline import compile_model
    from edgec.compiler.predict.model import predict_model
    from edgec.compiler.predict.prediction import Prediction
    from edgec.compiler.quantize.options import QuantizeOptions
    from edgec.compiler.quantize.quantization_recipe import load_recipe
    from edgec.compiler.serve.server import ServeOptions, serve_bundles
    from edgec.compiler.split.advise import SplitReport, plan_split
    from edgec.compiler.split.split_model import split_model
    from edgec.compiler.tune.api import tune_model, tuning_tasks
    from edgec.compiler.tune.options import TuneOptions
    from edgec.compiler.tune.report_data import TuneReport

    __version__: str

# Before any part of the compiler imports TVM.
hide_torch_from_tvm()

_HOME = {
    "AdviceLimits": "evaluate.advice",
    "BenchReport": "bench.compare",
    "Bundle": "bundle.bundle",
    "Candidate": "evaluate.advice",
    "Evaluation": "evaluate.evaluation",
    "EvaluationOptions": "evaluate.evaluation",
    "Prediction": "predict.prediction",
    "advise": "evaluate.advice",
    "evaluate_bundles": "evaluate.evaluation",
    "predict_model": "predict.model",
    "CompileOptions": "options",
    "CompressOptions": "compress.options",
    "DeployReport": "boards.deploy",
    "EdgecError": "errors",
    "ExitOptions": "exits.options",
    "FitOptions": "fit.options",
    "FitReport": "fit.fit_report",
    "Generator": "generation.generator",
    "JobOptions": "jobs.pool",
    "Limits": "fit.limits",
    "GovernorSettings": "governor.governor",
    "ModelReport": "inspection",
    "ImageInput": "frontend.preprocessing",
    "Preprocess": "frontend.preprocessing",
    "QuantizeOptions": "quantize.options",
    "SampleOptions": "calibration.samples",
    "Sampling": "generation.sampling",
    "TuneOptions": "tune.options",
    "TuneReport": "tune.report_data",
    "Variant": "governor.variants",
    "bench_bundles": "bench.compare",
    "bench_on": "boards.run",
    "compile_model": "pipeline",
    "deploy_bundle": "boards.deploy",
    "fit_model": "fit.api",
    "govern_bundle": "installation",
    "inspect_path": "inspection",
    "install_bundle": "installation",
    "load_compression": "compress.compression_recipe",
    "load_recipe": "quantize.quantization_recipe",
    "run_bundle": "boards.run",
    "serve_bundles": "serve.server",
    "ServeOptions": "serve.server",
    "sign_bundle": "bundle.bundle",
    "make_cascade": "evaluate.make_cascade",
    "open_cascade": "distribute.cascade_link",
    "PlanSession": "distribute.plan_session",
    "PlanSet": "distribute.plan_set",
    "SplitReport": "split.advise",
    "plan_split": "split.advise",
    "split_model": "split.split_model",
    "tune_model": "tune.api",
    "tuning_tasks": "tune.api",
    "verify_bundle": "parity.verify_bundle",
    "verify_on": "boards.run",
}

__all__ = [
    "AdviceLimits",
    "BenchReport",
    "Bundle",
    "Candidate",
    "CompileOptions",
    "CompressOptions",
    "DeployReport",
    "EdgecError",
    "Evaluation",
    "EvaluationOptions",
    "ExitOptions",
    "FitOptions",
    "FitReport",
    "Generator",
    "GovernorSettings",
    "ImageInput",
    "JobOptions",
    "Limits",
    "ModelReport",
    "PlanSession",
    "PlanSet",
    "Prediction",
    "Preprocess",
    "QuantizeOptions",
    "SampleOptions",
    "Sampling",
    "ServeOptions",
    "SplitReport",
    "TuneOptions",
    "TuneReport",
    "Variant",
    "__version__",
    "advise",
    "bench_bundles",
    "bench_on",
    "compile_model",
    "deploy_bundle",
    "evaluate_bundles",
    "fit_model",
    "govern_bundle",
    "inspect_path",
    "install_bundle",
    "load_compression",
    "load_recipe",
    "make_cascade",
    "open_cascade",
    "plan_split",
    "predict_model",
    "run_bundle",
    "serve_bundles",
    "sign_bundle",
    "split_model",
    "tune_model",
    "tuning_tasks",
    "verify_bundle",
    "verify_on",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("edgec")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
