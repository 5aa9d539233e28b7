"""A report of each kind, with names of the kind that a hostile model could have."""

from typing import Any, cast

from edgec.compiler.compress.compression_report import compression_page
from edgec.compiler.evaluate.evaluation import Evaluated, Evaluation
from edgec.compiler.evaluate.evaluation_report import evaluation_page
from edgec.compiler.predict.prediction import Energy, Estimate, OperatorTime, Prediction
from edgec.compiler.predict.prediction_report import prediction_page
from edgec.compiler.quantize.quantization_report import quantization_page
from edgec.compiler.support.html_report import Report, Subject
from edgec.compiler.tune.report_data import TaskResult, TuneReport
from edgec.compiler.tune.tasks import Task
from edgec.compiler.tune.tuning_report import Conditions, tune_page
from edgec.targets import load_target

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}</script></td>"
LONG = "/model/backbone/stage_4/block_2/" * 6 + "Conv_output_0"
SUBJECT = Subject(f"{HOSTILE}.onnx", "rpi4")


def quantization_fields(alone: dict[str, float], **changed: Any) -> dict[str, Any]:
    """Return fields of a quantization of operators with these ratios by themselves [dB]."""
    return {
        "recipe": {"name": "int8"},
        "codes": f"sums in int32 for {HOSTILE}",
        "accuracy": {
            "batches": 64,
            "score": 0.9375,
            "metric": "",
            "positions": 64,
            "sqnr_db": 24.5,
            "by_output": {},
        },
        "quantized": len(alone),
        "kept_float": [HOSTILE],
        "islands": [{"name": HOSTILE, "operator": "nn.softmax", "why": f"no integers {HOSTILE}"}],
        "operators": [
            {
                "name": name,
                "kind": "conv2d",
                "keep": "integer",
                "alone_sqnr_db": db,
                "alone_score": 1.0,
                "weight_sqnr_db": 40.0,
                "gives_up_bits": "weights",
                "side_sqnr_db": {"weights": 30.0, "activations": 28.0},
            }
            for name, db in alone.items()
        ],
        "values": [
            {
                "name": name,
                "low": -1.0,
                "high": 2.5,
                "scale": 3.5 / 255,
                "zero_point": 73,
                "dtype": "uint8",
                "shares_scale_with": name,
                "clipped_share": 0.001,
                "histogram": {"start": -2.0, "width": 0.5, "counts": [1, 0, 9, 40, 7, 2, 0, 1]},
            }
            for name in alone
        ],
        **changed,
    }


def compression_fields(after_ms: float, score: float) -> dict[str, Any]:
    """Return fields of a compression by two steps, of a model that took 2 ms before."""

    def costs(*macs: int) -> dict[str, Any]:
        layers = [
            {
                "name": name,
                "kind": "conv2d",
                "shape": [8, 3, 3, 3],
                "macs": m,
                "weights": 216,
                "zeros": 21,
            }
            for name, m in zip((HOSTILE, LONG, "last"), macs, strict=False)
        ]
        total = sum(macs)
        return {
            "macs": total,
            "weights": 700,
            "nonzeros": 600,
            "bytes": 2800,
            "layers": layers,
        }

    def step(kind: str, *macs: int) -> dict[str, Any]:
        settings = {"kind": kind, "ratio": 0.4, "note": HOSTILE}
        measured = {"latency_ms": after_ms, "score": score, "sqnr_db": -1.5, "by_output": {}}
        return {"settings": settings, **costs(*macs), **measured}

    return {
        "batches": 16,
        "metric": "",
        "positions": 100,
        "before": {**costs(4000, 90000, 700), "latency_ms": 2.0},
        "steps": [step("channels", 2000, 40000, 700), step("sparse", 2000, 40000)],
        "kernels": [{"name": HOSTILE, "density": 0.3, "sparse": False, "reason": HOSTILE}],
    }


def tune_report(times: dict[str, tuple[float, float]], calls: int = 1) -> TuneReport:
    """Return a report of kernels with these times before and after [s]."""
    results = [
        TaskResult(
            # The report reads no key and no target.
            Task(number, label, cast(Any, None), (0,) * calls, "", 0.1, 10**6, cast(Any, None)),
            before,
            after,
            '{"tile_width": 4, "unroll": true}',
            20,
            f"differs {HOSTILE}" if number == 0 else "",
        )
        for number, (label, (before, after)) in enumerate(times.items())
    ]
    before, after = (sum(pair[side] for pair in times.values()) for side in (0, 1))
    history = ((0.0, 0, before), (9.0, 40, after))
    return TuneReport(before, after, 60, 33.0, tuple(results), history, "60 trials", noisy=True)


CONDITIONS = Conditions(machine=HOSTILE, threads=2, peak_gflops=50.0, emulated=True)


def prediction(names: dict[str, float]) -> Prediction:
    """Return a prediction of operators that take these times [ms]."""
    operators = tuple(
        OperatorTime(name, "conv", Estimate(ms, ms / 2, ms * 2), "model", 10**6, 10**5, 1e5)
        for name, ms in names.items()
    )
    total = sum(names.values())
    latency = Estimate(total, total / 2, total * 2)
    energy, warnings = Energy(1.5, "model"), (f"nothing like it was measured {HOSTILE}",)
    return Prediction(
        "rpi4", 1, latency, operators, 4096, 8192, 99_000, "estimated", energy, 1e6, "", warnings
    )


def evaluation() -> Evaluation:
    """Return an evaluation of a measured bundle, and of one that is predicted and much larger."""
    sizes = {"arena_bytes": 4096, "library_bytes": 99_000, "bundle_bytes": 120_000}
    common: dict[str, Any] = {"model": SUBJECT.model, "target": "rpi4", "compressed": "", **sizes}
    measured = Evaluated(
        path=HOSTILE,
        quantized="",
        accuracy={"top1": 0.75},
        latency=Estimate(1.0, 0.9, 1.2),
        latency_source="measured",
        energy=Energy(2.0, "rapl"),
        **common,
    )
    foreign = Evaluated(
        path=LONG,
        quantized=HOSTILE,
        why_no_accuracy="rpi4 code does not run here",
        latency=Estimate(4.0, 2.0, 8.0),
        latency_source="predicted",
        **common,
    )
    return Evaluation((measured, foreign), "top1", True, f"labels of {HOSTILE}", 60, 1)


def pages() -> dict[str, Report]:
    """Return a report of each kind, each with a loss and with hostile and long names."""
    alone = {"good": 55.0, HOSTILE: 12.0, LONG: 31.0, "lost": -3.0}
    times = {HOSTILE: (1e-4, 2e-4), LONG: (3e-4, 1e-4), "small": (1e-5, 1e-5)}
    return {
        "quantization": quantization_page(quantization_fields(alone), SUBJECT),
        "compression": compression_page(compression_fields(2.5, 0.99), SUBJECT),
        "tuning": tune_page(tune_report(times), SUBJECT, CONDITIONS),
        "prediction": prediction_page(
            prediction({HOSTILE: 2.0, LONG: 1.0, "small": 0.01}), SUBJECT.model, load_target("rpi4")
        ),
        "evaluation": evaluation_page(evaluation()),
    }
