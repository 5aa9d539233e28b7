"""Decoders as ONNX Runtime GenAI's tools export them get the interface of our own."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.decoder_runs import DecoderRun
from support.language_files import config_of, random_tensors, write_folder
from support.reference_decoder import reference_logits

from edgec.compiler.errors import EdgecError, ModelFileError, UnsupportedModelError, UsageError
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.exported_decoder import adapt_decoder, is_exported_decoder
from edgec.compiler.language.huggingface import read_huggingface

CONFIG = config_of("llama")
TENSORS = random_tensors(CONFIG)
IDS = np.random.default_rng(1).integers(0, 61, 12).tolist()


def exported(folder: Path) -> onnx.ModelProto:
    """Return a decoder with the interface of ONNX Runtime GenAI's model builder."""
    write_folder(folder, CONFIG, TENSORS)
    source = read_huggingface(folder, context=16)
    model = onnx.load(write_decoder(source.decoder, source.weights, 16, folder))
    graph = model.graph
    ours = ("tokens.", "new_tokens", "present_length", "last_", "key_lengths")
    kept = [node for node in graph.node if not node.name.startswith(ours)]
    for node in kept:
        for place, name in enumerate(node.input):
            if name == "total_length":
                node.input[place] = "total"
            if name == "last_hidden":
                node.input[place] = "blk.1.ffn_added"
    del graph.node[:]
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    graph.node.extend(
        [
            helper.make_node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0),
            helper.make_node("Sub", ["lengths", "one"], ["before"]),
            helper.make_node("Cast", ["before"], ["key_lengths"], to=TensorProto.INT32),
            helper.make_node("Shape", ["attention_mask"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["total64"]),
            helper.make_node("Squeeze", ["total64"], ["total_scalar"]),
            helper.make_node("Cast", ["total_scalar"], ["total"], to=TensorProto.INT32),
            *kept,
        ]
    )
    tensor = helper.make_tensor_value_info
    parts = [f"{n}.{part}" for n in range(2) for part in ("key", "value")]
    cache = ["batch", 2, "past", 16]
    del graph.input[:], graph.output[:]
    graph.input.extend(
        [
            tensor("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            tensor("attention_mask", TensorProto.INT64, ["batch", "total"]),
            *(tensor(f"past_key_values.{part}", TensorProto.FLOAT, cache) for part in parts),
        ]
    )
    graph.output.extend(
        [
            tensor("logits", TensorProto.FLOAT, ["batch", "tokens", 61]),
            *(tensor(f"present.{part}", TensorProto.FLOAT, cache) for part in parts),
        ]
    )
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    onnx.save(exported(folder), folder / "model.onnx")
    config = {"model": {"context_length": 64, "type": "llama", "eos_token_id": [2, 5]}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_chunks_and_tokens_compute_what_the_whole_does(folder: Path, tmp_path: Path) -> None:
    source = read_model(folder / "model.onnx", context=16)
    onnx.save(source.proto, tmp_path / "adapted.onnx")
    run = DecoderRun(tmp_path / "adapted.onnx")
    logits = run.all_logits(IDS, [(4, 0), (3, 1)])
    expected = reference_logits(CONFIG, TENSORS, IDS)[[3, 6, 7, 8, 9, 10, 11]]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert run.state["past_length"] == [12]
    assert source.language is not None
    assert (source.language.context, source.language.trained_context) == (16, 64)
    assert source.language.end_tokens == (2, 5)
    assert source.original is source.proto


@pytest.mark.parametrize(
    ("context", "lost", "error", "message"),
    [
        (65, "", UsageError, "--context 65: .* 2 to 64 tokens"),
        (16, "tokenizer.json", ModelFileError, r"tokenizer\.json does not exist"),
    ],
)
def test_files_beside_it(
    context: int, lost: str, error: type[EdgecError], message: str, folder: Path, tmp_path: Path
) -> None:
    for file in ("model.onnx", "genai_config.json", "tokenizer.json"):
        if file != lost:
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(error, match=message):
        read_model(tmp_path / "model.onnx", context=context)


def test_other_interfaces_are_refused(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    assert is_exported_decoder(model)
    model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1]))
    with pytest.raises(UnsupportedModelError, match="a decoder with the inputs pixels"):
        adapt_decoder(model, 16, folder)
    model.graph.input.pop()
    for node in model.graph.node:
        node.op_type = node.op_type.replace("GroupQueryAttention", "Attention")
    assert not is_exported_decoder(model)
