"""Einsum as matrix products against ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from support.kernel_runs import compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.frontend.canonical import canonical_model
from edgec.compiler.frontend.converters.einsum import parse_equation
from edgec.compiler.parity.oracle import run_original

# Equation and shapes: attention, batches in front and behind, ellipses, diagonals, sums, outer
# products, three terms, axes of extent 1 that stand for more, an implicit result.
EQUATIONS = (
    ("nchk,nchq->nkq", (2, 3, 2, 5), (2, 3, 2, 4)),
    ("nkq,nchk->nchq", (2, 5, 4), (2, 3, 2, 5)),
    ("bhid,bhjd->bhij", (1, 2, 5, 3), (1, 2, 4, 3)),
    ("ij,jk->ki", (5, 3), (3, 4)),
    ("...ij, ...jk -> ...ik", (2, 3, 4, 5), (3, 5, 2)),
    ("...i,ij", (2, 3, 4), (4, 5)),
    ("iij,jk->ik", (3, 3, 4), (4, 2)),
    ("ii->", (4, 4)),
    ("bij->ji", (2, 3, 4)),
    ("i,j->ji", (3,), (4,)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("ij,j->i", (3, 4), (4,)),
    ("aij,bjk->aik", (2, 3, 4), (5, 4, 3)),
    ("bij,bjk->bik", (5, 3, 4), (1, 4, 3)),
)


def test_against_onnx_runtime(tmp_path: Path) -> None:
    nodes, inputs = [], {}
    for number, (equation, *shapes) in enumerate(EQUATIONS):
        names = [f"x{number}_{place}" for place in range(len(shapes))]
        inputs.update(zip(names, shapes, strict=True))
        nodes.append(node("Einsum", names, [f"y{number}"], equation=equation))
    names = [f"y{number}" for number in range(len(EQUATIONS))]
    built = compile_graph(make_model(nodes, inputs, names), "native", tmp_path)
    arrays = {n: random(*shape, seed=i) for i, (n, shape) in enumerate(inputs.items())}
    expected, found = run_original(built.model, arrays), built.open(threads=1).run(arrays)
    for (equation, *_), name in zip(EQUATIONS, names, strict=True):
        np.testing.assert_allclose(found[name], expected[name], 1e-5, 1e-5, err_msg=equation)
    # The comparison notices one other value.
    arrays["x0_0"] = arrays["x0_0"] + 0.01
    other = run_original(built.model, arrays)["y0"]
    assert not np.allclose(found["y0"], other, 1e-5, 1e-5)
    used = built.templates_of("y0")
    assert used == ["transpose", "matmul"], used


def test_half_precision_is_summed_in_float32() -> None:
    dtypes = dict.fromkeys("xyz", TensorProto.FLOAT16)
    nodes = [node("Einsum", ["x", "z"], ["y"], equation="ij,jk->ik")]
    model = make_model(nodes, {"x": (2, 3), "z": (3, 4)}, ["y"], dtypes=dtypes)
    text = canonical_model(model).module["main"].script()
    assert "R.matmul" in text
    assert 'R.astype(x, dtype="float32")' in text


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("ba", (2,), ([("b", "a")], ("a", "b"))),
        ("i...,i...->...", (3, 2), ([("i", "2", "1"), ("i", "1")], ("2", "1"))),
        ("bi,ib", (2, 2), ([("b", "i"), ("i", "b")], ())),
    ],
)
def test_equations(equation: str, ranks: tuple[int, ...], expected: object) -> None:
    assert parse_equation(equation, ranks) == expected


@pytest.mark.parametrize(
    ("equation", "ranks", "message"),
    [
        ("ij,jk->ik", (2,), "2 terms for 1 inputs"),
        ("ij->i", (3,), "does not fit 3 axes"),
        ("ij->k", (2,), "what no term has"),
        ("ij->ii", (2,), "names it twice"),
    ],
)
def test_refuses(equation: str, ranks: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        parse_equation(equation, ranks)
