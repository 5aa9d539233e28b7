"""A small random decoder, compiled for real, goes on with text: by Python and by its program."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import Call, check_error
from support.language_files import config_of, random_tensors
from support.reference_decoder import reference_logits
from support.talking_bundle import CONTEXT, PROMPT, talking_bundle

from edgec.compiler import Generator, Sampling
from edgec.compiler.cli.main import main
from edgec.compiler.errors import BadInputError, BundleError, UsageError
from edgec.compiler.generation.guide import TextGuide, json_grammar
from edgec.compiler.generation.reply import read_together


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a chat template, compiled for this machine with its program."""
    return talking_bundle(tmp_path_factory.mktemp("generation"), runner=True)


def greedy(prompt: list[int], count: int) -> list[int]:
    """Return the likeliest tokens by the reference in float64."""
    config = config_of("llama")
    tensors = random_tensors(config)
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(reference_logits(config, tensors, ids)[-1])))
    return ids[len(prompt) :]


def test_it_goes_on_as_the_reference_does(bundle: Path) -> None:
    generator = Generator(bundle, threads=1)
    reply = generator.generate(PROMPT, max_tokens=8)
    pieces = list(reply)
    assert reply.tokens == greedy(generator.tokenizer.encode(PROMPT), 8)
    assert [p.token for p in pieces if p.token is not None] == reply.tokens
    assert "".join(p.text for p in pieces) == reply.text
    assert reply.text == generator.tokenizer.decode(reply.tokens, continues=True)
    assert (reply.reason, reply.prompt_tokens, reply.cached_tokens) == ("length", len(PROMPT), 0)
    assert reply.first_token_seconds is not None
    assert reply.tokens_per_second is not None


def test_texts_of_one_session_are_computed_together(bundle: Path) -> None:
    prompts = (PROMPT, PROMPT[3:])
    alone = [Generator(bundle, threads=1).generate(p, max_tokens=9).complete() for p in prompts]
    first = Generator(bundle, threads=1)
    assert first.texts == 2
    second = Generator(bundle, threads=1, beside=first, text=1)
    replies = [g.generate(p, max_tokens=9) for g, p in zip((first, second), prompts, strict=True)]
    # One begins earlier, and one ends earlier.
    next(replies[0])
    while any(reply.reason is None for reply in replies):
        read_together([reply for reply in replies if reply.reason is None])
        for reply in replies:
            next(reply, None)
    assert [reply.tokens for reply in replies] == [reply.tokens for reply in alone]
    assert second.cached[: len(prompts[1])] == second.tokenizer.encode(prompts[1])
    with pytest.raises(BundleError, match="keep fewer texts"):
        Generator(bundle, threads=1, text=2)


def test_logits_of_a_prompt_do_not_depend_on_the_cache(bundle: Path) -> None:
    found = []
    for before in ("\x05", PROMPT[:-1], PROMPT):
        generator = Generator(bundle, threads=1)
        generator.generate(before, max_tokens=1).complete()
        (piece,) = generator.generate(PROMPT, max_tokens=1, logprobs=4)
        found.append(piece)
    assert found[0] == found[1] == found[2]
    assert found[0].odds == found[0].likeliest[0]
    assert [one.logprob for one in found[0].likeliest] == sorted(
        (one.logprob for one in found[0].likeliest), reverse=True
    )


def test_a_guide_rules_tokens_out(bundle: Path) -> None:
    generator = Generator(bundle, threads=1)
    guide = TextGuide(generator.guide_tokenizer, r"start: /[\x10-\x12]{5}/")
    reply = generator.generate(PROMPT, guide=guide).complete()
    assert reply.reason == "end"
    assert len(reply.text) == 5
    assert set(reply.text) <= set("\x10\x11\x12")
    with pytest.raises(UsageError, match="cannot be kept to"):
        TextGuide(generator.guide_tokenizer, "start: missing")
    for schema, words in (
        ("{", "is no JSON"),
        ("[]", "no JSON object"),
        ('{"type": 5}', "kept to"),
    ):
        with pytest.raises(UsageError, match=words):
            json_grammar(schema)


def test_a_shared_beginning_is_not_computed_again(bundle: Path, tmp_path: Path) -> None:
    generator = Generator(bundle, threads=1)
    generator.generate(PROMPT + "\x03\x04", max_tokens=3).complete()
    reply = generator.generate(PROMPT, max_tokens=6).complete()
    # The last token is read again, for its logits.
    assert reply.cached_tokens == len(PROMPT) - 1
    alone = Generator(bundle, threads=1).generate(PROMPT, max_tokens=6).complete()
    assert (alone.cached_tokens, alone.tokens) == (0, reply.tokens)
    generator.save(tmp_path / "cache")
    other = Generator(bundle, threads=1)
    other.load(tmp_path / "cache")
    assert other.cached == generator.cached
    again = other.generate(PROMPT, max_tokens=6).complete()
    assert (again.cached_tokens, again.tokens) == (len(PROMPT) - 1, reply.tokens)


def test_caches_that_are_not_of_the_model(bundle: Path, tmp_path: Path) -> None:
    generator = Generator(bundle, threads=1)
    generator.generate(PROMPT, max_tokens=1).complete()
    generator.save(tmp_path / "cache")
    content = bytearray((tmp_path / "cache").read_bytes())
    content[20] ^= 1  # of the digest
    for name, data in {"other": bytes(content), "short": content[:-1], "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInputError, match="is no prompt cache of this model, or damaged"):
            generator.load(tmp_path / name)
        # And it works as before.
        assert generator.generate(PROMPT, max_tokens=1).complete().cached_tokens == 0
    with pytest.raises(BadInputError, match=r"cannot read .*: No such file"):
        generator.load(tmp_path / "none")
    with pytest.raises(BadInputError, match="cannot write"):
        generator.save(tmp_path / "no" / "folder")


def test_the_end_of_the_context(bundle: Path) -> None:
    generator = Generator(bundle, threads=1)
    assert generator.context == CONTEXT
    reply = generator.generate(PROMPT, max_tokens=100).complete()
    if reply.reason == "context":
        assert len(reply.tokens) == CONTEXT - len(PROMPT) + 1
    full = generator.generate("\x10" * CONTEXT, max_tokens=9).complete()
    assert (full.reason, len(full.tokens)) in {("context", 1), ("end", 0)}
    with pytest.raises(BadInputError, match="has 41 tokens, the context is 40; shorten it"):
        generator.generate("\x10" * (CONTEXT + 1))


def test_stop_strings_and_seeds(bundle: Path) -> None:
    generator = Generator(bundle, threads=1)
    sampling = Sampling(temperature=2.0, seed=7)
    whole = generator.generate(PROMPT, max_tokens=12, sampling=sampling).complete()
    again = generator.generate(PROMPT, max_tokens=12, sampling=sampling).complete()
    other = generator.generate(
        PROMPT, max_tokens=12, sampling=Sampling(temperature=2.0, seed=8)
    ).complete()
    assert whole.tokens == again.tokens != other.tokens
    middle = whole.text[len(whole.text) // 2 :][:2]
    stopped = generator.generate(PROMPT, max_tokens=12, sampling=sampling, stop=["never", middle])
    text = "".join(piece.text for piece in stopped)
    assert text == stopped.text == whole.text[: whole.text.index(middle)]
    assert stopped.reason == "stop"


def test_chats(bundle: Path) -> None:
    generator = Generator(bundle, threads=1)
    messages = [{"role": "user", "content": "\x10\x11"}]
    first = generator.generate(messages, max_tokens=3).complete()
    text = "\x0e\x10\x11\x0f"
    assert generator.cached[:4] == generator.tokenizer.encode(text)
    assert generator.tokenizer.chat_text([("user", "\x10\x11")]) == text
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "\x12"},
    ]
    assert generator.generate(messages, max_tokens=2).complete().cached_tokens >= 4
    with pytest.raises(BadInputError, match="a mapping with role and content is expected"):
        generator.generate([{"role": "user"}])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("", "the prompt is empty"), ("\udcff", "the text is not UTF-8: character 0")],
)
def test_bad_prompts(bundle: Path, prompt: str, message: str) -> None:
    generator = Generator(bundle, threads=1)
    with pytest.raises(BadInputError, match=message):
        generator.generate(prompt)
    with pytest.raises(UsageError, match="max_tokens is -1"):
        generator.generate("a", max_tokens=-1)


def test_other_bundles_are_refused(digits_bundle: Path) -> None:
    with pytest.raises(BundleError, match="is not of a language model"):
        Generator(digits_bundle)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command; gives exit code, stdout and stderr."""

    def run_command(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def run(bundle: Path, *arguments: str | bytes, talk: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [bundle / "run", *arguments], input=talk.encode(), capture_output=True, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_program_says_what_python_says(bundle: Path, tmp_path: Path, call: Call) -> None:
    settings = ["--max-tokens", "9", "--temperature", "1.5", "--seed", "4", "--top-k", "20"]
    code, out, _ = call("run", str(bundle), "--prompt", PROMPT, *settings, "--json")
    python = json.loads(out)
    assert code == 0
    cache = str(tmp_path / "cache")
    for guesses in ("3", "off"):
        more = ["--json", "--prompt-cache", cache, "--speculate", guesses]
        code, out, err = run(bundle, "--prompt", PROMPT, *settings, *more)
        assert (code, json.loads(out)["tokens"]) == (0, python["tokens"]), err
        assert json.loads(out)["text"] == python["text"]
    generator = Generator(bundle, threads=1)
    generator.load(cache)
    assert len(generator.cached) >= len(PROMPT)
    code, plain, _ = run(bundle, "--prompt", PROMPT, *settings)
    assert (code, plain) == (0, python["text"] + "\n")
    code, plain, _ = call("run", str(bundle), "--prompt", PROMPT, *settings)
    assert (code, plain) == (0, python["text"] + "\n")


def test_the_program_chats_as_python_does(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = "\x10\x11\n\n/reset\n\x10\x11\n\x12\n" + "\x10" * 60 + "\n/exit\nnever\n"
    code, out, err = run(bundle, "--chat", "--max-tokens", "3", talk=talk)
    assert code == 0, err
    assert "the context of 40 tokens is full; /reset begins anew" in err
    (tmp_path / "talk").write_text(talk)
    with (tmp_path / "talk").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert main(["chat", str(bundle), "--max-tokens", "3"]) == 0
    found = capsys.readouterr()
    assert found.out == out
    assert "/reset begins anew" in found.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", b"\xff"], 4, "the prompt is not UTF-8"),
        (["--prompt", ""], 4, "the prompt is empty"),
        (["--prompt", "\x10" * 41], 4, "has 41 tokens, the context is 40"),
        (["--prompt-file", "/no/file"], 4, "cannot read /no/file"),
        (["--prompt", "a", "--temperature", "x"], 2, "--temperature is x; give a number from 0"),
        (["--prompt", "a", "--chat"], 2, "give one of --prompt, --prompt-file and --chat"),
        (["--chat", "--max-tokens"], 2, "--max-tokens is unknown or needs a value"),
        (["--prompt", "a", "--odd", "1"], 2, "unknown option --odd"),
        (
            ["--prompt", "a", "--speculate", "on"],
            2,
            "--speculate is on; give auto, off or a number",
        ),
    ],
)
def test_errors_of_the_program(
    bundle: Path, arguments: list[str | bytes], code: int, message: str
) -> None:
    found, out, err = run(bundle, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_errors_of_the_command_line(bundle: Path, digits_bundle: Path, call: Call) -> None:
    check_error(call("run", str(bundle), "--prompt", ""), 4, "the prompt is empty")
    check_error(call("run", str(digits_bundle), "--prompt", "a"), 4, "not of a language model")
    check_error(call("run", str(bundle), "--prompt", "a", "--top-p", "2"), 2, "top_p is 2.0")
    check_error(call("run", str(bundle), "--prompt", "a", "--board", "b"), 2, "takes no --board")
    check_error(call("run", str(bundle), "--prompt-file", "/no/file"), 4, "cannot be read")
    odd = call("run", str(bundle), "--prompt", "a", "--speculate", "on")
    check_error(odd, 2, "speculate is on; auto, off or a number")


def test_too_little_memory_is_said_before_it_is_taken(
    bundle: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.compiler.bundle.bundle.available_bytes", lambda: 1000)
    check_error(call("run", str(bundle), "--prompt", PROMPT), 4, "and 0 MB of memory are free")


def test_a_reply_keeps_to_a_grammar_from_a_file(bundle: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "three.lark").write_text(r"start: /[\x10-\x12]{3}/")
    grammar = ("--grammar", str(tmp_path / "three.lark"))
    code, out, _ = call("run", str(bundle), "--prompt", PROMPT, "--json", *grammar)
    assert code == 0
    assert len(json.loads(out)["text"]) == 3
    check_error(call("run", str(bundle), *grammar), 2, "are for the reply to a --prompt")
    both = (*grammar, "--json-schema", grammar[1], "--prompt", PROMPT)
    check_error(call("run", str(bundle), *both), 2, "not both")
