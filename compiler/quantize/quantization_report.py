"""Provide the report of a quantization: JSON for programs, one HTML page for people."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgec.compiler.ir.anchors import Operator
from edgec.compiler.numerics.affine import ChannelWeight, Scale, sqnr_db
from edgec.compiler.numerics.observers import BINS, Histogram
from edgec.compiler.quantize.encode import Quantization
from edgec.compiler.quantize.float_fallbacks import FloatFallback
from edgec.compiler.quantize.quantizer import QuantizedModel
from edgec.compiler.quantize.saturation import SaturationChoice
from edgec.compiler.support.html_report import STYLE, save_report

_BAR_WIDTH = 220
_SHOWN_BINS = 128
_PLOT_HEIGHT = 40


def report_fields(model: QuantizedModel, fallbacks: Sequence[FloatFallback] = ()) -> dict[str, Any]:
    """Return everything that is known about a quantization, as plain values."""
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
            "sqnr_db": accuracy.sqnr_db,
            "by_output": accuracy.by_output,
        },
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
    """Return the histogram of the float values: bins over all of them.

    And the share beyond the quantized values.
    """
    if histogram is None or histogram.width == 0:
        return {}
    edges = histogram.start + histogram.width * np.arange(BINS + 1)
    low, high = (
        (code - scale.zero_point) * scale.scale for code in (scale.qtype.low, scale.qtype.high)
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
    path: Path, model: QuantizedModel, fallbacks: Sequence[FloatFallback] = ()
) -> None:
    """Write a .json or .html file.

    Args:
        path: the path of the file.
        model: the quantized model.
        fallbacks: what computes on floats in the packed program.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, report_fields(model, fallbacks), _page)


def _page(fields: Mapping[str, Any]) -> str:
    accuracy = fields["accuracy"]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>quantization</title><style>{STYLE}</style>",
        f"<h1>Recipe {html.escape(fields['recipe']['name'])}</h1>",
        f"<p>{html.escape(fields['codes'])}</p>",
    ]
    if accuracy:
        parts.append(
            f"<p>Over {accuracy['batches']} batches: metric {accuracy['score']:.4f}, "
            f"signal-to-noise ratio {accuracy['sqnr_db']:.1f} dB.</p>"
        )
    if fields["kept_float"]:
        kept = ", ".join(map(html.escape, fields["kept_float"]))
        parts.append(f"<p>Returned to float: {kept}.</p>")
    parts += [
        _operators_table(fields["operators"]),
        _fallbacks_table(fields["islands"]),
        _values_table(fields["values"]),
    ]
    return "\n".join(parts)


def _operators_table(operators: list[dict[str, Any]]) -> str:
    """Return operators, the one that costs most by itself first."""
    ranked = sorted(
        operators, key=lambda o: (o["alone_sqnr_db"] is None, o["alone_sqnr_db"] or 0.0)
    )
    rows = [
        f"<tr><td>{html.escape(o['name'])}<td>{o['kind']}<td>{o['keep']}"
        f"<td>{_saturation_text(o)}"
        f"<td class=n>{_db(o.get('weight_sqnr_db'))}<td class=n>{_db(o['alone_sqnr_db'])}"
        f"<td>{_bar(o['alone_sqnr_db'])}"
        for o in ranked
    ]
    head = (
        "<tr><th>operator<th>kind<th>treated as<th>saturation mode<th>SQNR of its weights [dB]"
        "<th>SQNR of the model with it alone [dB]<th>"
    )
    return f"<h2>Operators</h2><table>{head}{''.join(rows)}</table>"


def _fallbacks_table(fallbacks: list[dict[str, Any]]) -> str:
    if not fallbacks:
        return ""
    rows = [
        f"<tr><td>{html.escape(i['name'])}<td>{i['operator']}<td>{html.escape(i['why'])}"
        for i in fallbacks
    ]
    head = "<tr><th>operator<th>kind<th>why"
    return f"<h2>Computed on floats</h2><table>{head}{''.join(rows)}</table>"


def _values_table(values: list[dict[str, Any]]) -> str:
    if not values:
        return ""
    low = min(v["low"] for v in values)
    high = max(v["high"] for v in values)
    rows = [
        f"<tr><td>{html.escape(v['name'])}<td>{v['dtype']}<td class=n>{v['low']:.4g}"
        f"<td class=n>{v['high']:.4g}<td class=n>{v['scale']:.4g}<td class=n>{v['zero_point']}"
        f"<td class=n>{_percent(v.get('clipped_share'))}"
        f"<td>{_range(v['low'], v['high'], low, high)}<td>{_plot(v)}"
        for v in values
    ]
    head = (
        "<tr><th>value<th>codes<th>low<th>high<th>scale<th>zero point<th>clipped<th>range"
        "<th>values, logarithm of the counts; lines: ends of the codes"
    )
    return f"<h2>Values</h2><table>{head}{''.join(rows)}</table>"


def _saturation_text(operator: dict[str, Any]) -> str:
    """Return the mode taken, and what each would give."""
    if "gives_up_bits" not in operator:
        return ""
    each = ", ".join(f"{mode} {db:.1f}" for mode, db in operator["side_sqnr_db"].items())
    return f"{operator['gives_up_bits']} ({each} dB)"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.3%}"


def _plot(value: dict[str, Any]) -> str:
    """Logarithms of the counts, and the ends of the quantized values as lines."""
    histogram = value.get("histogram")
    if histogram is None:
        return ""
    heights = np.log1p(np.array(histogram["counts"], np.float64))
    filled = np.flatnonzero(heights)
    first, last = int(filled[0]), int(filled[-1]) + 1
    heights = heights[first:last] * (_PLOT_HEIGHT / heights.max())
    bar = _BAR_WIDTH / len(heights)
    bars = "".join(
        f"<rect x={index * bar:.1f} y={_PLOT_HEIGHT - height:.1f} width={bar:.1f} "
        f"height={height:.1f} />"
        for index, height in enumerate(heights)
    )
    start = histogram["start"] + first * histogram["width"]
    ends = [(value[end] - start) / histogram["width"] * bar for end in ("low", "high")]
    lines = "".join(
        f"<line x1={end:.1f} x2={end:.1f} y1=0 y2={_PLOT_HEIGHT} />"
        for end in ends
        if 0 <= end <= _BAR_WIDTH
    )
    return f"<svg width={_BAR_WIDTH} height={_PLOT_HEIGHT}>{bars}{lines}</svg>"


def _db(value: float | None) -> str:
    return "" if value is None or value == float("inf") else f"{value:.1f}"


def _bar(value: float | None) -> str:
    """Return up to 60 dB."""
    if value is None:
        return ""
    width = _BAR_WIDTH * min(max(value, 0.0), 60.0) / 60
    return f"<svg width={_BAR_WIDTH} height=12><rect width={width:.0f} height=12 /></svg>"


def _range(low: float, high: float, lowest: float, highest: float) -> str:
    """Return a range within the widest one, with a line at 0."""
    unit = _BAR_WIDTH / max(highest - lowest, 1e-30)
    start, width, zero = (low - lowest) * unit, max((high - low) * unit, 1), -lowest * unit
    return (
        f"<svg width={_BAR_WIDTH} height=12><rect x={start:.0f} width={width:.0f} height=12 />"
        f"<line x1={zero:.0f} x2={zero:.0f} y1=0 y2=12 /></svg>"
    )
