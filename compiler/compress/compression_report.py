"""Provide the report of a compression: what each step gained and cost, by layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.compiler.calibration.accuracy import score_name, score_text
from edgec.compiler.compress.compressor import CompressedModel, StepResult
from edgec.compiler.compress.costs import Costs
from edgec.compiler.support.html_report import (
    Cell,
    Column,
    Report,
    Subject,
    Table,
    Tone,
    db_cell,
    gain_cell,
    number_cell,
    save_report,
    score_cell,
)


def report_fields(
    model: CompressedModel, kernels: Sequence[Mapping[str, Any]] = (), metric: str = ""
) -> dict[str, Any]:
    """Return everything that is known about a compression, as plain values.

    Args:
        model: the compressed model.
        kernels: for each operator with many zeros its name, density, whether it runs sparse, and
            the reason.
        metric: the name of the user's metric; empty: the largest class is compared.
    """
    accuracies = [result.accuracy for result in model.steps if result.accuracy]
    return {
        "metric": metric,
        "positions": max((accuracy.positions for accuracy in accuracies), default=0),
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
    path: Path,
    model: CompressedModel,
    subject: Subject,
    kernels: Sequence[Mapping[str, Any]] = (),
    metric: str = "",
) -> None:
    """Write a .json or .html file.

    Args:
        path: its name ends in .json or .html.
        model: the compressed model.
        subject: which model it is, and for which target.
        kernels: what runs operators with many zero weights.
        metric: the name of the user's metric; empty: the largest class is compared.

    Raises:
        OutputError: it cannot be written.
    """
    fields = report_fields(model, kernels, metric)
    save_report(path, fields, compression_page(fields, subject))


def compression_page(fields: Mapping[str, Any], subject: Subject) -> Report:
    """Return the page of what `report_fields` gives."""
    stages = [{"settings": {"kind": "original"}, **fields["before"]}, *fields["steps"]]
    first, last = stages[0], stages[-1]
    macs, weights = (
        Cell(f"{first[key]:,} before, {last[key]:,} after", tone=_growth(first[key], last[key]))
        for key in ("macs", "weights")
    )
    return Report(
        kind="Compression",
        subject=subject,
        facts={
            "Steps": Cell(", ".join(step["settings"]["kind"] for step in fields["steps"])),
            "Multiplications": macs,
            "Weights": weights,
            "Speed on this machine": gain_cell(first["latency_ms"], last["latency_ms"]),
            **_score_fact(fields, last),
            "SQNR [dB]": db_cell(last.get("sqnr_db")),
        },
        sections=[
            _steps_table(stages, score_name(fields["positions"], fields["metric"])),
            _layers_table(stages),
            _kernels_table(fields["kernels"]),
        ],
    )


def _score_fact(fields: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Cell]:
    """Return what the score of the last step is the share of; nothing where none was compared."""
    score = last.get("score")
    said = "" if score is None else score_text(score, fields["positions"], fields["metric"])
    return {f"Over {fields['batches']} batches": score_cell(score, said)} if said else {}


def _growth(before: float, after: float) -> Tone:
    """Return how a cost is shown: more than before is a loss."""
    return "loss" if after > before else ""


def _steps_table(stages: list[dict[str, Any]], compared: str) -> Table:
    first = stages[0]

    def row(stage: dict[str, Any]) -> list[Cell]:
        settings = {
            k: v for k, v in stage["settings"].items() if k != "kind" and v not in (None, [])
        }
        share = stage["macs"] / first["macs"] if first["macs"] else 1.0
        latency = gain_cell(first["latency_ms"], stage["latency_ms"])
        return [
            Cell(stage["settings"]["kind"]),
            number_cell(stage["macs"]),
            Cell(
                f"{share:.1%}" + ", a loss" * (share > 1),
                share,
                _growth(1, share),
                bar=min(share, 1.0),
            ),
            number_cell(stage["weights"]),
            number_cell(stage["nonzeros"]),
            number_cell(stage["bytes"] / 1024),
            number_cell(stage["latency_ms"], 3),
            latency,
            score_cell(stage.get("score") if compared else None),
            db_cell(stage.get("sqnr_db")),
            Cell(", ".join(f"{key} = {value}" for key, value in settings.items())),
        ]

    columns = (
        Column("step"),
        Column("multiplications", numbers=True),
        Column("of the original", numbers=True),
        Column("weights", numbers=True),
        Column("not zero", numbers=True),
        Column("as float32 [KiB]", numbers=True),
        Column("latency on this machine [ms]", numbers=True),
        Column("speed", numbers=True),
        Column(compared, numbers=True),
        Column("SQNR [dB]", numbers=True),
        Column("settings", wide=True),
    )
    return Table("Steps", columns, [row(stage) for stage in stages])


def _layers_table(stages: list[dict[str, Any]]) -> Table:
    """Return the layers and what each step left of them, the most expensive first."""
    found = [{layer["name"]: layer for layer in stage["layers"]} for stage in stages]
    names = list(dict.fromkeys(name for layers in found for name in layers))
    left = {name: found[-1][name]["macs"] if name in found[-1] else 0 for name in names}
    most = max(left.values(), default=0) or 1
    rows = []
    for name in sorted(names, key=lambda name: -left[name]):
        kind = next(layers[name]["kind"] for layers in found if name in layers)
        bar = Cell(f"{left[name]:,}", left[name], bar=left[name] / most)
        cells = [cell for layers in found for cell in _layer_cells(layers.get(name))]
        rows.append([Cell(name), bar, Cell(kind), *cells])
    columns = [Column("layer"), Column("multiplications left", numbers=True), Column("kind")]
    for number, stage in enumerate(stages):
        kind = stage["settings"]["kind"]
        group = f"{number}. {kind}" if number else kind
        columns += [
            Column("shape", group=group),
            Column("multiplications", numbers=True, group=group),
            Column("zeros", numbers=True, group=group),
        ]
    note = "The longest bar has most of the multiplications that are left."
    return Table("Layers", columns, rows, note)


def _layer_cells(layer: Mapping[str, Any] | None) -> list[Cell]:
    if layer is None:
        return [Cell("gone"), Cell(), Cell()]
    share = layer["zeros"] / layer["weights"] if layer["zeros"] else None
    return [
        Cell("x".join(map(str, layer["shape"]))),
        number_cell(layer["macs"]),
        Cell() if share is None else Cell(f"{share:.1%}", share),
    ]


def _kernels_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return what runs sparse, and why the rest does not."""
    cells = [
        [
            Cell(row["name"]),
            Cell(f"{row['density']:.0%}", row["density"], bar=row["density"]),
            Cell("sparse" if row["sparse"] else "dense"),
            Cell(row["reason"]),
        ]
        for row in sorted(rows, key=lambda row: -row["density"])
    ]
    columns = (
        Column("operator"),
        Column("not zero", numbers=True),
        Column("kernel"),
        Column("because", wide=True),
    )
    return Table("Kernels of operators with many zeros", columns, cells)
