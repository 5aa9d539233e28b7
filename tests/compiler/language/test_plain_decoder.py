"""Plain exported decoders, whose caches grow by Concat, beside ONNX Runtime running them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.decoder_runs import DecoderRun
from support.language_files import write_tokenizer
from support.plain_decoder import LAYERS, SIZE, VOCABULARY, PlainExport, growing_logits

from edgec.compiler import CompileOptions, Generator, compile_model
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BundleError, UnsupportedModelError
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.ir.signature import State

CONTEXT = 16
IDS = np.random.default_rng(1).integers(0, VOCABULARY, 14).tolist()
OTHER_NAMES = ("cache_{1}_{0}", "new_{1}_{0}")
OTHER_STATES = [
    State(f"cache_{part}_{layer}", f"new_{part}_{layer}")
    for part in ("value", "key")
    for layer in range(LAYERS)
]


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("export", "states", "window"),
    [
        (PlainExport(), (), 0),
        (PlainExport(window=5), (), 5),
        (PlainExport(where=True), (), 0),
        (PlainExport(names=OTHER_NAMES), OTHER_STATES, 0),
    ],
    ids=["added mask", "window", "mask of truth values", "other names"],
)
def test_each_token_is_that_of_growing_caches(
    export: PlainExport, states: list[State], window: int, tmp_path: Path
) -> None:
    path = saved(tmp_path, export.model())
    expected = growing_logits(path, IDS, [5, 3, 1, 1, 4])
    source = read_model(path, context=CONTEXT, states=states)
    attentions = [n for n in source.proto.graph.node if n.op_type == "GroupQueryAttention"]
    found = {item.i for n in attentions for item in n.attribute if item.name == "local_window_size"}
    assert (len(attentions), found) == (LAYERS, {window} - {0})
    onnx.save(source.proto, tmp_path / "adapted.onnx")
    run = DecoderRun(tmp_path / "adapted.onnx")
    logits = run.all_logits(IDS, [(5, 0), (3, 2), (1, 0), (1, 0)])
    np.testing.assert_allclose(logits, expected[[4, 7, 8, 9, 10, 11, 12, 13]], rtol=0, atol=1e-4)


def test_it_goes_on_with_a_prompt_if_there_is_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled, it gives the tokens that ONNX Runtime gives; without a tokenizer it is run."""
    path = saved(tmp_path, PlainExport().model())
    options = CompileOptions(context=CONTEXT, prefill_chunk=5)
    plain = compile_model(path, options=options, output=tmp_path / "plain.edgec")
    assert [program.name for program in plain.manifest.programs] == ["prefill", "verify", "decode"]
    session = plain.open(threads=1)
    expected = growing_logits(path, IDS, [5, 1, 1, 7])
    for place, count in ((0, 5), (5, 1), (6, 1), (7, 4)):
        tokens = {"input_ids": np.array([IDS[place : place + count]])}
        last = np.arange(count) if count == 4 else np.array([count - 1])
        logits = session.run({**tokens, "last": last[np.newaxis]})["logits"][0]
        rows = expected[place : place + count][-len(logits) :]
        np.testing.assert_allclose(logits, rows, rtol=0, atol=1e-4)
    session.reset()
    fed = {"input_ids": np.array([IDS[:4]]), "last": np.arange(4)[np.newaxis]}
    together = session.run(fed, "verify")["logits"][0]
    session.reset()
    for token, row in zip(IDS, together, strict=False):
        alone = session.run({"input_ids": np.array([[token]]), "last": np.array([[0]])})
        np.testing.assert_array_equal(alone["logits"][0, 0], row)
    with pytest.raises(BundleError, match="not of a language model"):
        Generator(plain)
    write_tokenizer(tmp_path, VOCABULARY)
    talking = CompileOptions(context=CONTEXT, prefill_chunk=5, verify_chunk=0, parity=False)
    bundle = compile_model(path, options=talking, output=tmp_path / "talking.edgec")
    text = "".join(chr(ord("!") + token) for token in IDS[:6])
    capsys.readouterr()
    arguments = ["--prompt", text, "--max-tokens", "6", "--json", "--threads", "1"]
    assert main(["run", str(bundle.path), *arguments]) == 0
    tokens = list(IDS[:6])
    for _ in range(6):
        tokens.append(int(np.argmax(growing_logits(path, tokens, [len(tokens)])[-1])))
    assert json.loads(capsys.readouterr().out)["tokens"] == tokens[6:]


def changed_node(kind: str, change: Callable[[onnx.NodeProto], None]) -> onnx.ModelProto:
    """Return an export with one node changed, the first of a kind."""
    model = PlainExport().model()
    change(next(node for node in model.graph.node if node.op_type == kind))
    return model


def axis_three(node: onnx.NodeProto) -> None:
    node.attribute[0].i = 3


def other_positions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Tokens count from how many rows a cache has."""
    past = helper.make_node("Shape", ["past_key_values.0.key"], ["rows"], name="/rows")
    moved = helper.make_node("ReduceMax", ["rows"], ["most"], name="/most", keepdims=0)
    added = helper.make_node("Add", ["position_ids", "most"], ["moved"], name="/moved")
    for node in model.graph.node:
        node.input[:] = ["moved" if name == "position_ids" else name for name in node.input]
    for node in (added, moved, past):
        model.graph.node.insert(0, node)
    return model


def slopes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Masks that also say how far a key is (ALiBi)."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "slope"))
    place, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Where")
    output, node.output[0] = node.output[0], "flat"
    added = helper.make_node("Add", ["flat", "slope"], [output], name="/sloped")
    model.graph.node.insert(place + 1, added)
    return model


def scaled(divisor: float) -> onnx.ModelProto:
    """Products of queries and keys are divided by another number."""
    model = PlainExport().model()
    root = next(t for t in model.graph.initializer if t.name == f"number.float32.{SIZE**0.5}")
    root.CopyFrom(numpy_helper.from_array(np.float32(divisor), root.name))
    return model


class Factored(PlainExport):
    """Caches are multiplied by a number, keys and values."""

    def repeated(self, value: str) -> str:
        return super().repeated(self.op("Mul", value, self.number(0.7, np.float32)))


class Tiled(PlainExport):
    """Key heads are repeated as a whole: 0, 1, 0, 1."""

    axis_for_times = 1


def without_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.output.remove(next(value for value in model.graph.output if value.name == name))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            changed_node("LessOrEqual", lambda node: setattr(node, "op_type", "GreaterOrEqual")),
            "does not show each token what is before it",
        ),
        (slopes(PlainExport().model()), "adds numbers to products"),
        (
            changed_node("Softmax", lambda node: setattr(node, "op_type", "LogSoftmax")),
            "LogSoftmax '/Softmax_.*' between the cache past_key_values.0.key",
        ),
        (other_positions(PlainExport().model()), "Shape '/rows' reads past_key_values.0.key"),
        (scaled(0.0), "multiplied by inf"),
        (scaled(np.inf), "multiplied by 0"),
        (Factored().model(), "values of the cache past_key_values.0.value are multiplied by 0.7"),
        (Tiled().model(), "Unsqueeze '/Unsqueeze_.*' between the cache past_key_values.0.key"),
        (
            without_output(PlainExport().model(), "present.1.value"),
            "present.1.value.* is no output",
        ),
    ],
    ids=[
        "another mask",
        "slopes",
        "no softmax",
        "positions by rows",
        "divided by 0",
        "times 0",
        "values times 0.7",
        "heads in another order",
        "no output",
    ],
)
def test_what_is_not_known_is_refused_by_name(
    model: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_model(saved(tmp_path, model), context=CONTEXT)


def test_states_that_are_no_caches_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, PlainExport(names=OTHER_NAMES).model())
    with pytest.raises(UnsupportedModelError, match="does not grow by Concat: logits is made by"):
        read_model(path, context=CONTEXT, states=[State("cache_key_0", "logits")])
    with pytest.raises(UnsupportedModelError, match="comes from no cache that is known"):
        read_model(path, context=CONTEXT, states=[State("cache_key_0", "new_key_0")])
    with pytest.raises(UnsupportedModelError, match="nothing makes other"):
        read_model(path, context=CONTEXT, states=[State("cache_key_0", "other")])
    with pytest.raises(UnsupportedModelError, match=r"the inputs cache_key_0.* by --state"):
        read_model(path, context=CONTEXT)
