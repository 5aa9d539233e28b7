"""A module in stages gives what it gives as a whole."""

from pathlib import Path

import numpy as np
from support.onnx_graphs import node, random
from support.small_models import small_model

from edgec.compiler.backend import evaluate_here
from edgec.compiler.calibration.float_model import FloatModel
from edgec.compiler.compress.staged_model import StagedModel
from edgec.compiler.ir.rewrite import with_weight, with_weights

WEIGHTS = {"w": random(8, 3, 1, 1), "v": random(4, 4, 1, 1), "u": random(8, 3, 1, 1, seed=1)}
# Both halves of a split, one of them late; a value and the input that are read much later.
NODES = [
    node("Conv", ["x", "w"], ["wide"]),
    node("Split", ["wide"], ["left", "right"], axis=1),
    node("Conv", ["left", "v"], ["inner"]),
    node("Relu", ["inner"], ["relu"]),
    node("Concat", ["relu", "right"], ["joined"], axis=1),
    node("Add", ["joined", "wide"], ["sum"]),
    node("Conv", ["x", "u"], ["last"]),
    node("Add", ["last", "sum"], ["y"]),
]


def test_stages_give_the_values_of_the_whole(tmp_path: Path) -> None:
    model = small_model(NODES, WEIGHTS, (2, 3, 4, 4))
    graph = model.graph
    by_name = {name: variable for variable, name in graph.names.items()}
    wide, inner, result = (by_name[name] for name in ("wide", "inner", "y"))
    (image,) = graph.parameters
    assert model.context.samples is not None
    samples = list(model.context.samples)
    wanted = [[image], [wide], [inner, wide], [result]]
    new = random(4, 4, 1, 1, seed=2)
    changed = {inner: with_weight(graph.definitions[inner], new)}
    staged = StagedModel(graph, model.context.signature, wanted, samples, tmp_path, evaluate_here)
    whole = FloatModel(
        type(graph)(with_weights(graph, {inner: new}), graph.value_names),
        model.context.signature,
        [],
        evaluate_here,
    )
    old = FloatModel(graph, model.context.signature, [wide, inner], evaluate_here)
    for stage, variables in enumerate(wanted):
        staged.run(stage, changed)
        for number, sample in enumerate(samples):
            found = [staged.value(variable, number) for variable in variables]
            before = old.values(sample)
            if stage == 0:
                np.testing.assert_array_equal(found[0], sample["x"])
            elif stage < 3:
                np.testing.assert_allclose(found[-1], before["wide"], rtol=1e-5, atol=1e-5)
            else:
                (expected,) = whole.results(sample).values()
                np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
                assert np.abs(found[0] - before["result y"]).max() > 0.1
    # What no later stage reads is gone.
    assert len(list(tmp_path.iterdir())) == len(samples)


def test_what_is_not_wanted_is_not_computed(tmp_path: Path) -> None:
    model = small_model(NODES, WEIGHTS, (2, 3, 4, 4))
    by_name = {name: variable for variable, name in model.graph.names.items()}
    assert model.context.samples is not None
    samples = list(model.context.samples)
    staged = StagedModel(
        model.graph, model.context.signature, [[by_name["wide"]]], samples, tmp_path, evaluate_here
    )
    staged.run(0, {})
    assert len(list(tmp_path.iterdir())) == len(samples)
