"""Prompts and tokens are timed; what ONNX Runtime GenAI is given computes what edgec computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.cli_calls import Call, check_error
from support.decoder_runs import DecoderRun
from support.gguf_files import write_gguf
from support.language_files import config_of, random_tensors
from support.talking_bundle import CONTEXT, talking_bundle

from edgec.compiler.bench import token_worker
from edgec.compiler.bench.genai_model import use_mask
from edgec.compiler.bench.names import TOKEN_RIVAL_NAMES
from edgec.compiler.bench.token_runtimes import TOKEN_RIVALS, TokenTest
from edgec.compiler.bench.tokens import TokenReport, TokenSpeed, bench_tokens, parse_tests
from edgec.compiler.errors import UsageError
from edgec.compiler.language.decoder_graph import write_decoder
from edgec.compiler.language.gguf_model import read_gguf_model
from edgec.compiler.support.silent_onnxruntime import onnxruntime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_bundle(tmp_path_factory.mktemp("tokens"))


def test_tests_are_read_from_the_command_line() -> None:
    assert parse_tests("pp8,tg2", "0,16") == [
        TokenTest("pp", 8),
        TokenTest("tg", 2),
        TokenTest("pp", 8, 16),
        TokenTest("tg", 2, 16),
    ]
    for tokens, depths in (("pp", "0"), ("xx4", "0"), ("pp0", "0"), ("tg4", "-1"), ("tg4", "")):
        with pytest.raises(UsageError, match=r"--tokens|--context-depth"):
            parse_tests(tokens, depths)
    assert (*TOKEN_RIVALS,) == ("edgec", *TOKEN_RIVAL_NAMES)


def test_a_bundle_is_measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.compiler.bench.tokens.READ_BYTES", 1 << 20)
    tests = parse_tests("pp8,tg2", "0,16")
    report = bench_tokens(bundle, tests, seconds=0.001)
    assert [speed.test for speed in report.speeds] == tests
    assert all(speed.median > 0 for speed in report.speeds)
    touched = [speed.touched_bytes for speed in report.speeds]
    assert touched[0] is touched[2] is None
    assert touched[1] is not None
    assert touched[1] > 4096
    with pytest.raises(UsageError, match=f"is {CONTEXT} tokens"):
        bench_tokens(bundle, parse_tests(f"tg{CONTEXT}", "0"))


def test_the_share_of_bandwidth_is_of_bytes_used_in_a_second() -> None:
    speed = TokenSpeed("x", TokenTest("tg", 4), (10.0, 20.0, 30.0), 1000)
    assert TokenReport(1, 40_000.0, (speed,)).bandwidth_share(speed) == 0.5


def test_a_runtime_starts_each_test_at_its_depth(bundle: Path) -> None:
    runtime = TOKEN_RIVALS["edgec"].load(bundle, 1, CONTEXT)
    generator = runtime._generator  # type: ignore[attr-defined]
    counts: list[int] = []
    for test in (TokenTest("pp", 9, 11), TokenTest("tg", 2, 11), TokenTest("pp", 9, 0)):
        runtime.seconds(test, lambda: counts.append(len(generator.cached)))
        counts.append(len(generator.cached))
    assert counts[:4] == [11, 20, 11, 13]
    assert counts[5] == 9
    said = token_worker.answer(runtime, {"kind": "tg", "tokens": 1, "depth": 3, "touched": True})
    assert said["touched_bytes"] > 4096


def test_a_mask_says_what_lengths_said(tmp_path: Path) -> None:
    config = config_of("llama")
    write_gguf(tmp_path / "tiny.gguf", config, random_tensors(config))
    source = read_gguf_model(tmp_path / "tiny.gguf", 16)
    path = write_decoder(source.decoder, source.weights, 16, tmp_path)
    ids = [3, 5, 7, 9, 4]
    expected = DecoderRun(path).step(ids)
    graph = onnx.load(path)
    use_mask(graph)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    cache = {
        value.name: np.zeros([1, *value.shape[1:]], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    fed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
    logits, *_ = session.run(["logits"], {**cache, **fed})
    np.testing.assert_allclose(logits.reshape(-1), expected.reshape(-1), rtol=1e-5, atol=1e-5)


def test_wrong_requests_are_said_in_one_line(bundle: Path, call: Call) -> None:
    for options, text in (
        (["--tokens", "zz"], "--tokens"),
        (["--tokens", "pp4", "--busy", "1"], "--tokens measures one bundle"),
        (["--tokens", "pp4", "--against", "llama.cpp"], "--against needs --model"),
        (["--tokens", "pp4", "--against", "lama.cpp"], "llama.cpp"),
    ):
        check_error(call("bench", bundle, *options), 2, text)
