"""Provide the report of a quantization: JSON for programs, one HTML page for people."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler.calibration.accuracy import score_name, score_text
from edgec.compiler.ir.anchors import Operator
from edgec.compiler.numerics.affine import ChannelWeight, Scale, sqnr_db
from edgec.compiler.numerics.observers import BINS, Histogram
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.float_fallbacks import FloatFallback
from edgec.compiler.quantize.quantizer import QuantizedModel
from edgec.compiler.quantize.saturation import SaturationChoice
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Report,
    Subject,
    Table,
    db_cell,
    number_cell,
    save_report,
    score_cell,
)

_SHOWN_BINS = 128


def report_fields(
    model: QuantizedModel, fallbacks: Sequence[FloatFallback] = (), metric: str = ""
) -> dict[str, Any]:
    """Return everything that is known about a quantization, as plain values.

    Args:
        model: the quantized model.
        fallbacks: what computes on floats in the packed program.
        metric: the name of the user's metric; empty: the largest class is compared.
    """
    quantization = model.quantization
    alone = {s.operator.name: s.accuracy for s in model.sensitivity}
    graph = quantization.plan.graph
    accuracy = model.accuracy
    return {
        "recipe": quantization.resolved.recipe.model_dump(mode="json"),
        "codes": quantization.resolved.why,
        "accuracy": accuracy
        and {
            "batches": model.measured,
            "score": accuracy.score,
            "metric": metric,
            "positions": accuracy.positions,
            "sqnr_db": accuracy.sqnr_db,
            "by_output": accuracy.by_output,
        },
        "quantized": len(quantization.plan.quantized()),
        "kept_float": list(model.kept_float),
        "islands": [dataclasses.asdict(fallback) for fallback in fallbacks],
        "operators": [
            {
                **_operator(operator, quantization),
                "alone_sqnr_db": alone[operator.name].sqnr_db if operator.name in alone else None,
                "alone_score": alone[operator.name].score if operator.name in alone else None,
                **_saturation_mode(model.choices.get(operator.name)),
            }
            for operator in quantization.plan.operators
        ],
        "values": [
            {
                "name": graph.names[variable],
                "low": (scale.qtype.low - scale.zero_point) * scale.scale,
                "high": (scale.qtype.high - scale.zero_point) * scale.scale,
                "scale": scale.scale,
                "zero_point": scale.zero_point,
                "dtype": scale.qtype.dtype,
                "shares_scale_with": graph.names[quantization.plan.shared[variable]],
                **_histogram(scale, model.histograms.get(graph.names[variable])),
            }
            for variable, scale in quantization.scales.items()
        ],
    }


def _saturation_mode(choice: SaturationChoice | None) -> dict[str, Any]:
    """Return the saturation mode, and the signal-to-noise ratio of each."""
    if choice is None:
        return {}
    return {"gives_up_bits": choice.mode, "side_sqnr_db": dict(choice.db)}


def _histogram(scale: Scale, histogram: Histogram | None) -> dict[str, Any]:
    """Return bins over all float values, and the share half a step beyond the quantized ones."""
    if histogram is None or histogram.width == 0:
        return {}
    edges = histogram.start + histogram.width * np.arange(BINS + 1)
    low, high = (
        (code - scale.zero_point) * scale.scale
        for code in (scale.qtype.low - 0.5, scale.qtype.high + 0.5)
    )
    centres = (edges[:-1] + edges[1:]) / 2
    outside = histogram.counts[(centres < low) | (centres > high)].sum()
    return {
        "least": histogram.extremes.low,
        "largest": histogram.extremes.high,
        "clipped_share": float(outside / histogram.counts.sum()),
        "histogram": {
            "start": histogram.start,
            "width": histogram.width * (BINS // _SHOWN_BINS),
            "counts": histogram.counts.reshape(_SHOWN_BINS, -1).sum(axis=1).astype(int).tolist(),
        },
    }


def _operator(operator: Operator, quantization: Quantization) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": operator.name, "kind": operator.kind, "keep": operator.keep}
    if operator.name in quantization.weights and operator.weight is not None:
        packed_weight = quantization.weights[operator.name]
        values = quantization.weight_values(operator)
        fields["weight_sqnr_db"] = sqnr_db(operator.weight.array, values)
        if isinstance(packed_weight, ChannelWeight):
            fields["weight_scales"] = [
                float(packed_weight.scales.min()),
                float(packed_weight.scales.max()),
            ]
    return fields


def write_quantization_report(
    path: Path,
    model: QuantizedModel,
    subject: Subject,
    fallbacks: Sequence[FloatFallback] = (),
    metric: str = "",
) -> None:
    """Write a .json or .html file.

    Args:
        path: the path of the file.
        model: the quantized model.
        subject: which model it is, and for which target.
        fallbacks: what computes on floats in the packed program.
        metric: the name of the user's metric; empty: the largest class is compared.

    Raises:
        OutputError: it cannot be written.
    """
    fields = report_fields(model, fallbacks, metric)
    save_report(path, fields, quantization_page(fields, subject))


def quantization_page(fields: Mapping[str, Any], subject: Subject) -> Report:
    """Return the page of what `report_fields` gives."""
    accuracy = fields["accuracy"]
    facts = {
        "Recipe": Cell(fields["recipe"]["name"]),
        "Quantized values": Cell(fields["codes"]),
        "Operators": _count(fields["quantized"]),
        "Returned to float": Cell(", ".join(fields["kept_float"]), tone="warning"),
    }
    compared = ""
    if accuracy:
        compared = score_name(accuracy["positions"], accuracy["metric"])
        said = score_text(accuracy["score"], accuracy["positions"], accuracy["metric"])
        if said:
            facts[f"Over {accuracy['batches']} batches"] = score_cell(accuracy["score"], said)
        facts["SQNR [dB]"] = db_cell(accuracy["sqnr_db"])
    return Report(
        kind="Quantization",
        subject=subject,
        facts=facts,
        sections=[
            _operators_table(fields["operators"], compared),
            _fallbacks_table(fields["islands"]),
            _values_table(fields["values"]),
        ],
    )


def _count(quantized: int) -> Cell:
    """Return how many operators are quantized; none is a warning."""
    return Cell(f"{quantized} quantized", tone="" if quantized else "warning")


def _noise(db: float | None) -> float:
    """Return noise as a part of the signal, by amplitude; at most 100, which NaN is, too."""
    if db is None:
        return 0.0
    return 100.0 if math.isnan(db) else 10.0 ** (-max(db, -40.0) / 20)


def _operators_table(operators: list[dict[str, Any]], compared: str) -> Table:
    """Return the operators, the one that costs most by itself first.

    Where nothing was measured by operator, the weights stand for it.
    """
    measured = any(o["alone_sqnr_db"] is not None for o in operators)
    noises = [
        _noise(o["alone_sqnr_db"] if measured else o.get("weight_sqnr_db")) for o in operators
    ]
    most = max(noises, default=0.0) or 1.0
    rows = [
        [
            Cell(o["name"]),
            Cell(f"{noise:.2%}", noise, "loss" if noise >= 1 else "", bar=noise / most)
            if noise
            else Cell(),
            db_cell(o["alone_sqnr_db"]),
            score_cell(o["alone_score"] if compared else None),
            db_cell(o.get("weight_sqnr_db")),
            Cell(o["kind"]),
            Cell(o["keep"]),
            Cell(_saturation_text(o)),
        ]
        for noise, o in sorted(
            zip(noises, operators, strict=True), key=lambda pair: pair[0], reverse=True
        )
    ]
    columns = (
        Column("operator"),
        Column("noise of the model with it alone" if measured else "noise of its weights", True),
        Column("SQNR of the model with it alone [dB]", numbers=True),
        Column(f"{compared} with it alone", numbers=True),
        Column("SQNR of its weights [dB]", numbers=True),
        Column("kind"),
        Column("treated as"),
        Column("gives up bits"),
    )
    note = "Noise is a part of the signal, by amplitude. The longest bar costs most."
    return Table("Operators", columns, rows, note)


def _fallbacks_table(fallbacks: list[dict[str, Any]]) -> Table:
    columns = (Column("operator"), Column("kind"), Column("why", wide=True))
    rows = [[Cell(f["name"]), Cell(f["operator"]), Cell(f["why"])] for f in fallbacks]
    return Table("Computed on floats", columns, rows)


def _values_table(values: list[dict[str, Any]]) -> Table:
    """Return the values that are quantized values.

    The one that loses most beyond their ends first.
    """
    lowest = min((v["low"] for v in values), default=0.0)
    widest = max(max((v["high"] for v in values), default=0.0) - lowest, 1e-30)
    rows = [
        [
            Cell(v["name"]),
            _histogram_cell(v),
            _percent(v.get("clipped_share")),
            Cell(v["dtype"]),
            Cell(f"{v['low']:.4g}", v["low"]),
            Cell(f"{v['high']:.4g}", v["high"]),
            _span_cell(v, lowest, widest),
            Cell(f"{v['scale']:.4g}", v["scale"]),
            number_cell(v["zero_point"]),
        ]
        for v in sorted(values, key=lambda v: -v.get("clipped_share", 0.0))
    ]
    columns = (
        Column("value"),
        Column("distribution"),
        Column("clipped", numbers=True),
        Column("type"),
        Column("low", numbers=True),
        Column("high", numbers=True),
        Column("range"),
        Column("scale", numbers=True),
        Column("zero point", numbers=True),
    )
    note = "Distributions show the logarithm of the counts; lines are the ends of the type."
    return Table("Values", columns, rows, note)


def _saturation_text(operator: dict[str, Any]) -> str:
    """Return the mode taken, and what each would give."""
    if "gives_up_bits" not in operator:
        return ""
    each = ", ".join(f"{mode} {db:.1f}" for mode, db in operator["side_sqnr_db"].items())
    return f"{operator['gives_up_bits']} ({each} dB)"


def _percent(share: float | None) -> Cell:
    return Cell() if share is None else Cell(f"{share:.3%}", share)


def _span_cell(value: dict[str, Any], lowest: float, widest: float) -> Cell:
    """Return the range of a value within the widest one, and where 0 is."""
    start, end, zero = ((x - lowest) / widest for x in (value["low"], value["high"], 0.0))
    return Cell(span=(start, end, zero))


def _histogram_cell(value: dict[str, Any]) -> Cell:
    """Return logarithms of the counts, and the ends of the quantized values as lines."""
    histogram = value.get("histogram")
    if histogram is None:
        return Cell()
    heights = np.log1p(np.array(histogram["counts"], np.float64))
    filled = np.flatnonzero(heights)
    first, last = int(filled[0]), int(filled[-1]) + 1
    start = histogram["start"] + first * histogram["width"]
    width = histogram["width"] * (last - first)
    marks = [(value[end] - start) / width for end in ("low", "high")]
    return Cell(
        heights=(heights[first:last] / heights.max()).tolist(),
        marks=[mark for mark in marks if 0 <= mark <= 1],
    )
