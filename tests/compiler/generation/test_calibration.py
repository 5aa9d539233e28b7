"""Language models of 4 bits, rounded for a text."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from support.language_files import (
    BASE,
    config_of,
    merged_tensors,
    random_factors,
    random_tensors,
    write_folder,
    write_peft,
)
from support.reference_decoder import reference_logits

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import (
    CalibrationError,
    EdgecError,
    UnsupportedModelError,
    UsageError,
)
from edgec.compiler.generation.calibration import TextQuantization
from edgec.compiler.language.float_decoder import FloatDecoder, float_matrix, float_products
from edgec.compiler.language.grouped_weight import GroupedWeight
from edgec.compiler.language.huggingface import read_huggingface
from edgec.compiler.parity.verify_bundle import verify_bundle
from edgec.compiler.quantize.options import QuantizeOptions
from edgec.compiler.runtime.static_session import StaticSession

CONFIG = {**config_of("llama"), "intermediate_size": 64, "vocab_size": 90}
ONE_LAYER = {**CONFIG, "num_hidden_layers": 1}
TENSORS = random_tensors(ONE_LAYER)
FACTORS = random_factors(TENSORS, ("q_proj", "down_proj"), 4)
# Each letter is a token of its own.
TEXT = "".join(map(chr, np.random.default_rng(2).integers(ord("!"), ord("y"), 3000)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "text.txt").write_text(TEXT)
    return write_folder(path, CONFIG, random_tensors(CONFIG))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    options = CompileOptions(
        context=64,
        prefill_chunk=8,
        quantize="int4",
        cache="float16",
        lora=f"{write_peft(folder / 'adapter', FACTORS)}:0.5",
        samples=SampleOptions(source=str(folder / "text.txt")),
    )
    small = write_folder(folder / "small", ONE_LAYER, TENSORS)
    return compile_model(small, options=options, output=folder / "small.edgec")


def test_a_bundle_says_what_it_was_rounded_for(bundle: Bundle, folder: Path) -> None:
    settings = bundle.manifest.settings
    assert settings.weights.startswith("int4 in groups of 32, rounded for text.txt, SHA-256 ")
    assert bundle.manifest.parity.checked_on == "target"
    plain = TextQuantization(32, None).apply(read_huggingface(folder, context=64))
    assert bundle.manifest.model.sha256 != plain.language.digest
    with pytest.raises(UsageError, match=r"no longer those of a file \(adapter merged, int4 in"):
        verify_bundle(bundle, model=folder)


def test_a_bundle_holds_the_adapter_that_it_names(bundle: Bundle, folder: Path) -> None:
    (record,) = bundle.manifest.settings.lora
    names = ("adapter_config.json", "adapter_model.safetensors")
    parts = [sha256((folder / "adapter" / name).read_bytes()).digest() for name in names]
    assert (record.name, record.scale) == ("adapter", 0.5)
    assert record.sha256 == sha256(b"".join(parts)).hexdigest()
    fed = {"input_ids": np.arange(8).reshape(1, 8), "last": np.array([[7]])}
    logits = bundle.open(threads=1).run(fed)["logits"]
    off = {}
    for scale in (0.0, 0.5 * 6 / 4, 6 / 4):
        tensors = merged_tensors(TENSORS, FACTORS, scale)
        expected = reference_logits(ONE_LAYER, tensors, list(range(8)))[-1]
        off[scale] = np.sqrt(np.square(logits - expected).mean())
    # 4 bits are noise; another adapter is more.
    assert off[0.75] < 0.5 * min(off[0.0], off[1.5])


def test_what_is_rounded_for_a_text_is_nearer(folder: Path) -> None:
    """The error of hidden states, on text of the same kind."""
    model = read_huggingface(folder, context=64)
    tokens = np.random.default_rng(3).integers(0, 88, (4, 40))
    tables = float_matrix(model.weights, "token_embd.weight")
    found = {}
    for name, quantization in (
        ("float", None),
        ("nearest", TextQuantization(32, None)),
        ("text", TextQuantization(32, folder / "text.txt")),
    ):
        made = model if quantization is None else quantization.apply(model)
        weights = made.weights
        decoder = FloatDecoder(model.decoder, weights, float_products(weights))
        hidden = decoder.embed(tables, tokens)
        for layer in range(model.decoder.layers):
            hidden = decoder.layer(hidden, layer)
        found[name] = hidden
    noise = {name: np.square(found[name] - found["float"]).mean() for name in ("nearest", "text")}
    assert 0 < noise["text"] < 0.9 * noise["nearest"]


def test_matrices_have_their_bits(folder: Path) -> None:
    weights = TextQuantization(32, None).apply(read_huggingface(folder, context=64)).weights
    for name, bits in (("blk.0.attn_q.weight", 4), ("token_embd.weight", 8), ("output.weight", 8)):
        matrix = weights.matrix(name)
        assert isinstance(matrix, GroupedWeight)
        assert matrix.bits == bits


def refused(folder: Path, **options: object) -> str:
    with pytest.raises(EdgecError) as error:
        compile_model(folder, options=CompileOptions(context=64, **options), output=folder / "no")
    return str(error.value)


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("few")
    (tmp_path / "bytes.txt").write_bytes(b"\xff" * 99)
    by_text = {"quantize": "int4"}

    def text(name: str) -> dict[str, object]:
        return {**by_text, "samples": SampleOptions(source=str(tmp_path / name))}

    assert "has 3 tokens; at least 32" in refused(folder, **text("short.txt"))
    assert "is no UTF-8 text: byte 0" in refused(folder, **text("bytes.txt"))
    assert "there is none of this name" in refused(folder, **text("missing.txt"))
    assert "they take --quantize int4" in refused(folder, quantize="int8-dynamic")
    with_bar = QuantizeOptions(recipe="int4", max_drop=0.1)
    assert "no other option of quantization" in refused(folder, quantize=with_bar)
    odd = write_folder(tmp_path / "odd", {**BASE, **CONFIG, "intermediate_size": 48}, ODD)
    assert "rows of 48 values" in refused(odd, **by_text)
    assert CalibrationError.exit_code != UnsupportedModelError.exit_code


ODD = random_tensors({**CONFIG, "intermediate_size": 48})


def test_a_cache_of_half_floats_takes_half_the_memory(bundle: Bundle) -> None:
    """Rows are appended in place, and attention reads them as they are."""
    caches = [state for state in bundle.manifest.states if state.input != "past_length"]
    assert {(state.dtype, state.size_bytes) for state in caches} == {("float16", 2 * 64 * 16 * 2)}
    assert bundle.manifest.settings.cache == "float16"
    session = bundle.open(threads=1)
    assert isinstance(session, StaticSession)
    ids = np.arange(8).reshape(1, 8)
    session.run({"input_ids": ids, "last": np.array([[7]])})
    rows = session.state("past_key_values.0.key")[0]
    assert rows.dtype == np.float16
    assert np.all(np.any(rows[:, :8] != 0, axis=2))
    assert not rows[:, 8:].any()
    # Nothing converts a whole cache.
    for program in range(2):
        templates = [step.template for step in session.steps(program)]
        assert templates.count("cache_append") == 2
        assert templates.count("cache_attention") == 1
        assert templates.count("generic") < 10


def test_decode_is_checked_on_a_cache_that_prefill_filled(bundle: Bundle) -> None:
    """Its vectors go on where those of prefill end."""
    programs = [vector.program for vector in bundle.manifest.vectors]
    assert programs == ["prefill"] * 3 + ["verify"] * 3 + ["decode"] * 3
    assert [vector.goes_on for vector in bundle.manifest.vectors] == [False, *[True] * 8]
    session = bundle.open(threads=1)
    for fed, expected in bundle.vectors()[3:4]:
        fresh = session.run(fed)["logits"]
        assert np.abs(fresh - expected["logits"]).max() > 0.1 * np.abs(expected["logits"]).max()
    assert verify_bundle(bundle).passed
