"""Language models take the way of every model: compile, run, inspect, verify."""

from pathlib import Path

import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.language_files import config_of, random_tensors, write_folder
from support.onnx_graphs import make_model, node, save
from support.reference_decoder import reference_logits

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import LimitError, UsageError
from edgec.compiler.frontend.limits import Limits
from edgec.compiler.frontend.model_source import is_language_model, read_model
from edgec.compiler.inspection import ModelReport, inspect_path
from edgec.compiler.parity.verify_bundle import verify_bundle

CONFIG = {**config_of("llama"), "num_hidden_layers": 1}
TENSORS = random_tensors(CONFIG)
IDS = np.random.default_rng(1).integers(0, 61, 9).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", CONFIG, TENSORS)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    options = CompileOptions(context=16, prefill_chunk=4)
    return compile_model(folder, options=options, output=folder.parent / "tiny.edgec")


def test_a_bundle_takes_chunks_and_tokens(bundle: Bundle) -> None:
    assert [program.name for program in bundle.manifest.programs] == ["prefill", "verify", "decode"]
    session = bundle.open(threads=1)
    # A chunk, one with padding behind its three tokens, and two tokens.
    chunks = [(IDS[:4], 3), ([*IDS[4:7], 0], 2), (IDS[7:8], 0), (IDS[8:9], 0)]
    logits = [
        session.run({"input_ids": np.array([ids]), "last": np.array([[last]])})["logits"][0, 0]
        for ids, last in chunks
    ]
    expected = reference_logits(CONFIG, TENSORS, IDS)[[3, 6, 7, 8]]
    # Float32 against float64; logits are of the order of 5.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    session.reset()
    again = session.run({"input_ids": np.array([IDS[:4]]), "last": np.array([[3]])})["logits"]
    np.testing.assert_array_equal(again[0, 0], logits[0])


def test_a_bundle_is_verified_against_its_source(bundle: Bundle, folder: Path) -> None:
    assert bundle.manifest.model.name == "tiny"
    assert verify_bundle(bundle, model=folder, seeds=(1,)).passed


def test_a_model_is_inspected(folder: Path) -> None:
    report = inspect_path(folder, CompileOptions(context=16))
    assert isinstance(report, ModelReport)
    assert "past_key_values.0.key [batch,2,16,16] float32" in report.inputs
    assert report.unsupported == ()


def test_what_is_a_language_model(folder: Path, tmp_path: Path) -> None:
    assert is_language_model(folder)
    assert not is_language_model(tmp_path)
    relu = make_model([node("Relu", ["x"], ["y"])], {"x": [1, 4]}, ["y"])
    other = save(relu, tmp_path)
    assert not is_language_model(other)
    with pytest.raises(UsageError, match=r"--context is for language models"):
        read_model(other, context=16)


def test_a_gguf_file_keeps_its_codes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    types = {"ffn_down.weight": "Q8_0", "attn_q.weight": "Q4_1"}
    config = {**CONFIG, "intermediate_size": 64}
    write_gguf(path, config, random_tensors(config), types)
    source = read_model(path, context=16)
    assert source.language is not None
    assert source.language.context == 16
    assert '"type":"BPE"' in source.tokenizer
    codes = {
        tensor.name: tuple(tensor.dims)
        for tensor in source.proto.graph.initializer
        if tensor.data_type == tensor.UINT8
    }
    assert codes == {"blk.0.ffn_down.blocks": (32, 2, 32), "blk.0.attn_q.blocks": (64, 1, 16)}


def test_a_chunk_larger_than_the_context(folder: Path) -> None:
    options = CompileOptions(context=16, prefill_chunk=16)
    with pytest.raises(UsageError, match=r"--prefill-chunk 16: a context of 16 tokens allows 15"):
        compile_model(folder, options=options)


def test_a_model_beyond_the_limit(folder: Path) -> None:
    with pytest.raises(LimitError, match=r"language model .* \(--limit file=SIZE\)"):
        read_model(folder, Limits(file_bytes=1000))
