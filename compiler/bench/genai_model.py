"""Write a language model as ONNX Runtime GenAI loads it.

The graph is the one that edgec compiles (`language/decoder_graph.py`); what differs is its
interface: GenAI gives `attention_mask` int64 [1, keys], ones, in place of `past_length` and `last`.
And its zero points of 4 bits are whole numbers. Where they are floats, ONNX Runtime makes floats of
the whole matrix for every token, which says nothing of what it can do. So its speed is that of the
same number of bits; its words are not the model's.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler.errors import ToolchainError
from edgec.compiler.language.architectures import Decoder
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.gguf_model import read_gguf_model
from edgec.compiler.language.huggingface import read_huggingface

CONFIG = "genai_config.json"
_MASK = "attention_mask"


def write_genai_model(model: Path, context: int, threads: int, folder: Path) -> int:
    """Write model and settings to a folder.

    Args:
        model: a GGUF file or a folder of Hugging Face's.
        context: rows of its cache.
        threads: threads to compute on.
        folder: an empty one.

    Returns:
        The number of tokens that it knows.

    Raises:
        ToolchainError: it is another kind of file.
    """
    if model.suffix == ".onnx":
        raise ToolchainError("it is measured on GGUF files and folders of Hugging Face's")
    read = read_gguf_model if model.is_file() else read_huggingface
    source = read(model, context)
    path = write_decoder(source.decoder, source.weights, context, folder)
    graph = onnx.load(path, load_external_data=False)
    use_mask(graph)
    round_zero_points(graph, folder)
    path.write_bytes(graph.SerializeToString())
    config = _config(source.decoder, context, threads, path.name)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return source.language.vocabulary


def use_mask(model: onnx.ModelProto) -> None:
    """Give a decoder of edgec's interface that of GenAI, in place."""
    graph = model.graph
    for inputs, gone in (
        (graph.input, ("past_length", "last")),
        (graph.output, ("present_length",)),
    ):
        for value in [value for value in inputs if value.name in gone]:
            inputs.remove(value)
    graph.input.append(helper.make_tensor_value_info(_MASK, TensorProto.INT64, [1, "keys"]))
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    lengths, total = attention.input[5], attention.input[6]
    makers = {output: node for node in graph.node for output in node.output}
    last = next(node for node in graph.node if "last" in node.input)
    new = [
        helper.make_node("Shape", [_MASK], ["mask.shape"]),
        helper.make_node("Gather", ["mask.shape", "mask.axis"], ["mask.keys"], axis=0),
        helper.make_node("Cast", ["mask.keys"], [total], to=TensorProto.INT32),
        helper.make_node("Sub", ["mask.keys", "mask.one"], ["mask.before_last"]),
        helper.make_node("Cast", ["mask.before_last"], ["mask.lengths"], to=TensorProto.INT32),
        helper.make_node("Reshape", ["mask.lengths", "mask.one"], [lengths]),
    ]
    for name, value in (
        ("axis", np.array(1, np.int64)),
        ("one", np.array([1], np.int64)),
        ("first", np.array([0], np.int64)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, f"mask.{name}"))
    graph.initializer.remove(next(item for item in graph.initializer if item.name == total))
    # The last token is the last of the prompt: no padding stands behind it.
    kept = [node for node in graph.node if node is not makers[lengths]]
    kept = list(_without(kept, "present_length"))
    place = kept.index(last)
    kept[place] = helper.make_node("Unsqueeze", [last.input[1], "mask.first"], list(last.output))
    nodes = [*new, *kept]
    del graph.node[:]
    graph.node.extend(nodes)


def round_zero_points(model: onnx.ModelProto, folder: Path) -> None:
    """Round zero points that are floats, and pack them, in place.

    Args:
        model: the graph.
        folder: where the files of its weights are.
    """
    weights = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits" or len(node.input) < 4 or not node.input[3]:
            continue
        zeros = numpy_helper.to_array(weights[node.input[3]], str(folder))
        rows = next(item.i for item in node.attribute if item.name == "N")
        codes = np.clip(np.rint(zeros), 0, 15).astype(np.uint8).reshape(rows, -1)
        if codes.shape[1] % 2:
            codes = np.pad(codes, ((0, 0), (0, 1)))
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        name = f"{node.input[3]}.rounded"
        if name not in weights:
            weights[name] = numpy_helper.from_array(packed, name)
            model.graph.initializer.append(weights[name])
        node.input[3] = name


def _without(nodes: Iterable[onnx.NodeProto], output: str) -> Iterable[onnx.NodeProto]:
    return (node for node in nodes if output not in node.output)


def _config(decoder: Decoder, context: int, threads: int, file: str) -> dict[str, object]:
    return {
        "model": {
            "type": "llama",
            "bos_token_id": 0,
            # One has to be given; the last of them rarely follows anything.
            "eos_token_id": decoder.vocabulary - 1,
            "pad_token_id": 0,
            "context_length": context,
            "vocab_size": decoder.vocabulary,
            "decoder": {
                "session_options": {
                    "intra_op_num_threads": threads,
                    "inter_op_num_threads": 1,
                    "provider_options": [],
                },
                "filename": file,
                "head_size": decoder.head_size,
                "hidden_size": decoder.width,
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": decoder.layers,
                "num_key_value_heads": decoder.key_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": _MASK,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": context, "past_present_share_buffer": True, "do_sample": False},
    }
