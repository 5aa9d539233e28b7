"""Fit what predictions use: factors by kernel template, and trees that correct their sum."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from scipy.optimize import nnls

from edgec.compiler.predict.correction import UNCOUNTED, Fit, TemplateFit
from edgec.compiler.predict.features import FEATURES, STEP, Row, StepFeatures
from edgec.compiler.predict.trees import Trees, tree_inputs
from edgec.compiler.predict.workload_numbers import families_of, kind_of, workload_numbers
from edgec.targets import Target
from edgec.targets.native import cpu_name

# Calls of one kind pull towards the factors of all kinds as this many calls would.
PRIOR_CALLS = 3.0
# A call that is further off than this counts less and less (iteratively reweighted least squares).
ROBUST = 0.05
FOLDS = 5
ITERATIONS = 15
FEWEST_CALLS = 3
CALLS_FOR_A_BAR = 10
# Kinds that trees tell apart have at least so many calls.
CALLS_OF_A_KIND = 15
# How much of what trees say is believed, by cross-validation over the models that are fitted.
BELIEVED = 0.5
DEPTH, TREES = 4, 100
# A call of a known model counts as so many of a random network, whose values may be subnormal.
KNOWN_MODEL = 3.0
# Calls of which two halves of the measurement differ by more are not learned from.
UNSTEADY = 0.3
_BOOSTING: dict[str, Any] = {
    "objective": "reg:pseudohubererror",
    "huber_slope": 0.15,
    "max_depth": DEPTH,
    "eta": 0.06,
    "subsample": 0.7,
    "colsample_bynode": 0.4,
    "min_child_weight": 4,
    "lambda": 10.0,
    "base_score": 0.0,
    "nthread": 1,
    "seed": 0,
}


def fit_factors(rows: Row, values: Row, scale: Row, prior: Row | None = None) -> Row:
    """Return the factors, none below zero, of the least error by ratio.

    Half and twice are equally wrong: each error is divided by the mean, of products, of what was
    measured and what the factors of the turn before say.

    Args:
        rows: features [calls, features].
        values: what was measured [calls].
        scale: of each feature, relative to what was measured.
        prior: factors that few calls do not change much.
    """
    weights, middle = np.ones(len(values)), values
    factors = np.zeros(rows.shape[1])
    for _ in range(ITERATIONS):
        left = rows / scale / middle[:, None] * weights[:, None]
        right = values / middle * weights
        if prior is not None:
            left = np.vstack([left, np.sqrt(PRIOR_CALLS) * np.eye(len(scale))])
            right = np.concatenate([right, np.sqrt(PRIOR_CALLS) * prior * scale])
        factors = nnls(left, right)[0] / scale
        says = np.maximum(rows @ factors, 1e-3 * values)
        middle = np.sqrt(values * says)
        error = np.abs(says - values) / middle
        weights = 1 / np.sqrt(np.maximum(error, ROBUST))
    return np.asarray(factors)


@dataclass
class Calls:
    """Calls are what was measured: kind, features, value and model of each."""

    kinds: Any
    rows: Row
    values: Row
    models: Any
    steps: list[StepFeatures]

    @classmethod
    def of(cls, lines: Sequence[dict[str, Any]], unit: str) -> "Calls":
        """Return lines; instructions do not depend on where bytes come from."""
        rows = np.array([line["row"] for line in lines])
        if unit == "instructions":
            for name in ("near_bytes", "middle_bytes", "far_bytes", "cycles"):
                rows[:, FEATURES.index(name)] = 0
        kinds = []
        for line in lines:
            template, _, way = line["kind"].partition(" ")
            kinds.append(kind_of(template, line["workload"], way.startswith("winograd")))
        contexts = [
            np.concatenate([line["context"][: len(STEP)], workload_numbers(line["workload"])])
            for line in lines
        ]
        values = np.array([max(1.0, line["value"]) for line in lines])
        steps = [
            StepFeatures(kind, row, line["counted"], 0.0, context)
            for kind, line, row, context in zip(kinds, lines, rows, contexts, strict=True)
        ]
        models = np.array([line["model"] for line in lines])
        known = [
            kind if line["counted"] else UNCOUNTED for kind, line in zip(kinds, lines, strict=True)
        ]
        return cls(np.array(known), rows, values, models, steps)

    def where(self, mask: Any) -> "Calls":
        """Return some of the calls."""
        steps = [step for step, chosen in zip(self.steps, mask, strict=True) if chosen]
        return Calls(self.kinds[mask], self.rows[mask], self.values[mask], self.models[mask], steps)


@dataclass
class Found:
    """What was found is the factors by kind, and the trees."""

    factors: dict[str, Row]
    trees: Trees | None

    def predict(self, calls: Calls) -> Row:
        """Return what they say of calls."""
        found = []
        for kind, step in zip(calls.kinds, calls.steps, strict=True):
            own = factors_of(self.factors, str(kind))
            more = self.trees.factor(step, own) if self.trees is not None else 1.0
            found.append(float(own @ step.row) * more)
        return np.maximum(np.array(found), 1e-9)


def fit_factors_by_kind(calls: Calls) -> dict[str, Row]:
    """Return factors by kind, and `any` for all together."""
    relative = np.sqrt(((calls.rows / calls.values[:, None]) ** 2).mean(axis=0))
    scale = np.asarray(np.where(relative > 0, relative, 1.0))
    common = fit_factors(calls.rows, calls.values, scale)
    found = {"any": common}
    families = np.array([str(kind).partition(" ")[0] for kind in calls.kinds])
    for kind in np.unique([*calls.kinds, *families]):
        mine = calls.kinds == kind
        if not mine.any():
            mine = families == kind
        if mine.sum() >= FEWEST_CALLS:
            found[str(kind)] = fit_factors(calls.rows[mine], calls.values[mine], scale, common)
    return {kind: np.array([float(f"{value:.4g}") for value in row]) for kind, row in found.items()}


def factors_of(factors: dict[str, Row], kind: str) -> Row:
    """Return the factors of a kind, or of its template, or of any."""
    return next(factors[name] for name in families_of(kind) if name in factors)


def fit_all(calls: Calls) -> Found:
    """Return factors, and trees that learn what they leave."""
    factors = fit_factors_by_kind(calls)
    names, counts = np.unique([step.kind for step in calls.steps], return_counts=True)
    kinds = tuple(str(n) for n, c in zip(names, counts, strict=True) if c >= CALLS_OF_A_KIND)
    inputs, left = [], []
    for kind, step, value in zip(calls.kinds, calls.steps, calls.values, strict=True):
        own = factors_of(factors, str(kind))
        inputs.append(tree_inputs(step, own, kinds))
        left.append(np.log(value / max(float(own @ step.row), 1e-9)))
    drawn = np.array([str(name).startswith("random:") for name in calls.models])
    weights = np.where(drawn, 1.0, KNOWN_MODEL)
    data = xgboost.DMatrix(np.array(inputs), label=np.clip(left, -1.4, 1.4), weight=weights)
    booster = xgboost.train(_BOOSTING, data, num_boost_round=TREES)
    return Found(factors, complete_trees(booster, kinds))


def complete_trees(booster: Any, kinds: tuple[str, ...]) -> Trees:
    """Return boosted trees, each filled up to the full depth."""
    inputs, bounds, leaves = [], [], []
    for text in booster.get_dump(dump_format="json"):
        chosen, least = [0] * (2**DEPTH - 1), [0.0] * (2**DEPTH - 1)
        ends = [0.0] * 2**DEPTH
        _fill(json.loads(text), 0, 0, chosen, least, ends)
        inputs.append(chosen)
        bounds.append(least)
        leaves.append(ends)
    return Trees(kinds=kinds, depth=DEPTH, inputs=inputs, bounds=bounds, leaves=leaves)


def _fill(
    node: dict[str, Any],
    place: int,
    level: int,
    inputs: list[int],
    bounds: list[float],
    leaves: list[float],
) -> None:
    """Write a decision or leaf and what is below; a leaf above the last level is repeated."""
    if level == DEPTH:
        leaves[place - (2**DEPTH - 1)] = float(f"{BELIEVED * node['leaf']:.3g}")
        return
    if "leaf" in node:
        below = [node, node]
    else:
        inputs[place] = int(node["split"].removeprefix("f"))
        bounds[place] = float(f"{node['split_condition']:.5g}")
        children = {child["nodeid"]: child for child in node["children"]}
        below = [children[node["yes"]], children[node["no"]]]
    for number, child in enumerate(below):
        _fill(child, 2 * place + 1 + number, level + 1, inputs, bounds, leaves)


def left_out_ratios(calls: Calls) -> Row:
    """Return measured over predicted of each call, by a fit that has not seen its model."""
    names = np.array(sorted({str(name).partition("+")[0] for name in calls.models}))
    fold = {name: number % FOLDS for number, name in enumerate(names)}
    folds = np.array([fold[str(name).partition("+")[0]] for name in calls.models])
    ratios = np.ones(len(calls.values))
    for number in range(FOLDS):
        out = folds == number
        ratios[out] = calls.values[out] / fit_all(calls.where(~out)).predict(calls.where(out))
    return ratios


def steady_calls(lines: Sequence[dict[str, Any]]) -> Any:
    """Return which calls were measured alike twice; those that were counted are."""
    halves = [line.get("halves", [1.0]) for line in lines]
    return np.array([max(pair) <= (1 + UNSTEADY) * max(1.0, min(pair)) for pair in halves])


def fit(
    lines: Sequence[dict[str, Any]],
    target: Target,
    unit: Any,
    output: Path,
    held_out: Sequence[str],
) -> None:
    """Fit on all models but those held out, and write the file with their error."""
    calls = Calls.of(lines, unit)
    held = np.isin(calls.models, held_out)
    trained, unseen = calls.where(~held & steady_calls(lines)), calls.where(held)
    found, ratios = fit_all(trained), left_out_ratios(trained)
    templates = {}
    for kind, row in found.factors.items():
        mine = trained.kinds == kind
        if not mine.any():
            mine = np.array([kind in families_of(str(k)) for k in trained.kinds])
        spread = ratios[mine] if mine.sum() >= CALLS_FOR_A_BAR else ratios
        low, high = np.percentile(spread, [10, 90])
        templates[kind] = TemplateFit(
            factors={n: float(v) for n, v in zip(FEATURES, row, strict=True) if v > 0},
            low=float(f"{min(1.0, low):.3g}"),
            high=float(f"{max(1.0, high):.3g}"),
            calls=int(mine.sum()),
        )
    predicted = found.predict(unseen)
    share = predicted / unseen.values
    models = {}
    for name in dict.fromkeys(str(model) for model in unseen.models):
        mine = unseen.models == name
        models[name] = round(float(predicted[mine].sum() / unseen.values[mine].sum()), 3)
    names = dict.fromkeys(str(name).partition(":")[0] for name in trained.models)
    made = Fit(
        unit=unit,
        architecture=target.architecture,
        vector_bits=target.vector_bits,
        target=target.name,
        integer_dot=target.integer_dot,
        clock_ghz=target.clock_ghz,
        machine=cpu_name() if unit == "ns" else f"QEMU {target.emulator and target.emulator.cpu}",
        date=time.strftime("%Y-%m-%d"),
        trained=tuple(name for name in names if name != "random"),
        random=len({str(name) for name in trained.models if str(name).startswith("random:")}),
        held_out=tuple(models),
        templates=templates,
        within=round(float((np.abs(share - 1) <= 0.2).mean()), 3),
        models=models,
        trees=found.trees,
    )
    output.mkdir(parents=True, exist_ok=True)
    kind = "times" if unit == "ns" else "instructions"
    name = f"{target.architecture}-{target.vector_bits}" if unit == "ns" else target.name
    (output / f"{name}-{kind}.json").write_text(made.model_dump_json(exclude_none=True) + "\n")
    print(made.describe())
    _explain(lines, held, unseen, share, found, trained)


def _explain(
    lines: Sequence[dict[str, Any]],
    held: Any,
    unseen: Calls,
    share: Row,
    found: Found,
    trained: Calls,
) -> None:
    """Print how far off kinds and models are, and how far measurements are from themselves."""
    alone = Found(found.factors, None).predict(unseen) / unseen.values
    same = (np.abs(found.predict(trained) / trained.values - 1) <= 0.2).mean()
    weight = unseen.values / unseen.values.sum()
    good = np.abs(share - 1) <= 0.2
    print(
        f"calls within 20 %: {good.mean():.1%} ({weight[good].sum():.0%} of the whole), factors "
        f"alone {(np.abs(alone - 1) <= 0.2).mean():.1%}, models that were fitted {same:.1%}"
    )
    pairs = [line.get("halves", []) for line, chosen in zip(lines, held, strict=True) if chosen]
    halves = np.array([pair for pair in pairs if len(pair) == 2])
    if len(halves):
        agree = np.abs(halves[:, 0] / np.maximum(1, halves[:, 1]) - 1) <= 0.2
        print(f"the halves of the measurement agree within 20 % for {agree.mean():.1%}")
    for kind in sorted(set(unseen.kinds)):
        mine = unseen.kinds == kind
        print(
            f"  {kind:26}{mine.sum():5} calls, {weight[mine].sum():6.1%} of the whole, "
            f"{good[mine].mean():.0%} within 20 %, median {np.median(share[mine]):.2f}; "
            f"{(trained.kinds == kind).sum()} fitted"
        )
    for name in dict.fromkeys(str(model) for model in unseen.models):
        mine = unseen.models == name
        whole = (share * unseen.values)[mine].sum() / unseen.values[mine].sum()
        plain = (alone * unseen.values)[mine].sum() / unseen.values[mine].sum()
        print(
            f"  {name:28} {whole:.3f} as a whole (factors alone {plain:.3f}), "
            f"{good[mine].mean():.0%} of the calls within 20 %"
        )
