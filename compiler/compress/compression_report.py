"""Provide the report of a compression: what each step gained and cost, by layer."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.compiler.compress.compressor import CompressedModel, StepResult
from edgec.compiler.compress.costs import Costs
from edgec.compiler.support.html_report import STYLE, save_report


def report_fields(
    model: CompressedModel, kernels: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return everything that is known about a compression, as plain values.

    Args:
        model: the compressed model.
        kernels: for each operator with many zeros its name, density, whether it runs sparse, and
            the reason.
    """
    return {
        "batches": model.measured,
        "before": {**_costs(model.before), "latency_ms": model.latency_before_ms},
        "steps": [_step(result) for result in model.steps],
        "kernels": list(kernels),
    }


def _step(result: StepResult) -> dict[str, Any]:
    accuracy = result.accuracy
    return {
        "settings": result.step.model_dump(mode="json"),
        **_costs(result.costs),
        "latency_ms": result.latency_ms,
        "score": accuracy and accuracy.score,
        "sqnr_db": accuracy and accuracy.sqnr_db,
        "by_output": accuracy and accuracy.by_output,
    }


def _costs(costs: Costs) -> dict[str, Any]:
    return {
        "macs": costs.macs,
        "weights": costs.weights,
        "nonzeros": costs.nonzeros,
        "bytes": 4 * costs.weights,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "macs": layer.macs,
                "weights": layer.weights,
                "zeros": layer.zeros,
            }
            for layer in costs.operators
        ],
    }


def write_compression_report(
    path: Path, model: CompressedModel, kernels: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write a .json or .html file.

    Args:
        path: its name ends in .json or .html.
        model: the compressed model.
        kernels: what runs operators with many zero weights.

    Raises:
        OutputError: it cannot be written.
    """
    save_report(path, report_fields(model, kernels), _page)


def _page(fields: Mapping[str, Any]) -> str:
    stages = [{"settings": {"kind": "original"}, **fields["before"]}, *fields["steps"]]
    return "\n".join(
        [
            f"<!doctype html><meta charset=utf-8><title>compression</title><style>{STYLE}</style>",
            "<h1>Compression</h1>",
            _steps_table(stages, fields["batches"]),
            _layers_table(stages),
            _kernels_table(fields["kernels"]),
        ]
    )


def _steps_table(stages: list[dict[str, Any]], batches: int) -> str:
    first, rows = stages[0], []
    for stage in stages:
        settings = {
            k: v for k, v in stage["settings"].items() if k != "kind" and v not in (None, [])
        }
        written = ", ".join(f"{key} = {value}" for key, value in settings.items())
        rows.append(
            f"<tr><td>{stage['settings']['kind']}<td>{html.escape(written)}"
            f"<td class=n>{stage['macs']:,}<td class=n>{stage['macs'] / first['macs']:.1%}"
            f"<td class=n>{stage['weights']:,}<td class=n>{stage['nonzeros']:,}"
            f"<td class=n>{stage['bytes'] / 1024:,.0f}"
            f"<td class=n>{_number(stage['latency_ms'], 3)}"
            f"<td class=n>{_number(stage.get('score'), 4)}"
            f"<td class=n>{_number(stage.get('sqnr_db'), 1)}"
        )
    head = (
        "<tr><th>step<th>settings<th>multiplications<th>of the original<th>weights<th>not zero"
        "<th>as float32 [KiB]<th>latency on this machine [ms]"
        f"<th>metric over {batches} batches<th>SQNR [dB]"
    )
    return f"<h2>Steps</h2><table>{head}{''.join(rows)}</table>"


def _layers_table(stages: list[dict[str, Any]]) -> str:
    """Return layers of the original, and what each step left of them."""
    found = [{layer["name"]: layer for layer in stage["layers"]} for stage in stages]
    names = list(dict.fromkeys(name for layers in found for name in layers))
    rows = []
    for name in names:
        kind = next(layers[name]["kind"] for layers in found if name in layers)
        cells = "".join(_layer_cells(layers.get(name)) for layers in found)
        rows.append(f"<tr><td>{html.escape(name)}<td>{kind}{cells}")
    kinds = "".join(f"<th colspan=3>{stage['settings']['kind']}" for stage in stages)
    head = f"<tr><th>layer<th>kind{kinds}"
    under = "<tr><th><th>" + "<th>shape<th>multiplications<th>zeros" * len(stages)
    return f"<h2>Layers</h2><table>{head}{under}{''.join(rows)}</table>"


def _kernels_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what runs sparse, and why the rest does not."""
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{html.escape(row['name'])}<td class=n>{row['density']:.0%}"
        f"<td>{'sparse' if row['sparse'] else 'dense'}<td>{html.escape(row['reason'])}"
        for row in rows
    )
    head = "<tr><th>operator<th>not zero<th>kernel<th>because"
    return f"<h2>Kernels of operators with many zeros</h2><table>{head}{cells}</table>"


def _layer_cells(layer: Mapping[str, Any] | None) -> str:
    if layer is None:
        return "<td>gone<td><td>"
    shape = "x".join(map(str, layer["shape"]))
    zeros = f"{layer['zeros'] / layer['weights']:.1%}" if layer["zeros"] else ""
    return f"<td>{shape}<td class=n>{layer['macs']:,}<td class=n>{zeros}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
