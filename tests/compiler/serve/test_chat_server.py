"""A language model is served to OpenAI's own client."""

import contextlib
import http.client
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from support.serving import Serving
from support.talking_bundle import CONTEXT, PROMPT, talking_bundle

from edgec.compiler import Generator

MESSAGES: Any = [{"role": "user", "content": "\x10\x11\x12"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talking_bundle(tmp_path_factory.mktemp("talking"))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("chat") / "log"
    # More streams than a session keeps texts.
    with Serving([f"tiny={bundle}", "--sessions", "3", "--threads", "1"], log) as url:
        yield url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_chats_and_texts(client: openai.OpenAI, bundle: Path) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "edgec"
    alone = Generator(bundle, threads=1)
    expected = alone.generate(MESSAGES, max_tokens=5).complete()
    asked: Any = {"model": "tiny", "temperature": 0}
    answer = client.chat.completions.create(messages=MESSAGES, max_completion_tokens=5, **asked)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == ("stop" if expected.reason == "end" else "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected.tokens)
    parts = list(
        client.chat.completions.create(
            messages=MESSAGES,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
            **asked,
        )
    )
    texts = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert "".join(texts) == expected.text
    usage = parts[-1].usage
    assert usage is not None
    # What the prompt shares with the one before is not computed again.
    assert usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens - 1
    text = client.completions.create(prompt=PROMPT, max_tokens=4, **asked).choices[0].text
    assert text == alone.generate(PROMPT, max_tokens=4).complete().text
    assert text != expected.text


def test_many_at_once_get_their_own_answers(client: openai.OpenAI, bundle: Path) -> None:
    prompts = [PROMPT[start:] for start in range(8)] * 3
    alone = Generator(bundle, threads=1)
    expected = [alone.generate(prompt, max_tokens=4).complete().text for prompt in prompts]
    random.Random(0).shuffle(both := list(zip(prompts, expected, strict=True)))
    prompts, expected = [prompt for prompt, _ in both], [text for _, text in both]

    def ask(prompt: str) -> str:
        return (
            client.completions.create(model="tiny", prompt=prompt, max_tokens=4, temperature=0)
            .choices[0]
            .text
        )

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, prompts)) == expected
    assert len(set(expected)) > 1


def test_how_likely_tokens_were(client: openai.OpenAI, bundle: Path) -> None:
    alone = Generator(bundle, threads=1)
    pieces = list(alone.generate(PROMPT, max_tokens=3, logprobs=2))
    asked: Any = {"model": "tiny", "temperature": 0, "max_tokens": 3}
    found = client.completions.create(prompt=PROMPT, logprobs=2, **asked).choices[0].logprobs
    assert found is not None
    odds = [piece.odds for piece in pieces if piece.odds]
    assert found.token_logprobs == pytest.approx([one.logprob for one in odds], abs=1e-6)
    assert [len(likeliest) for likeliest in found.top_logprobs or []] == [2] * len(odds)
    asked |= {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    parts = client.chat.completions.create(stream=True, **asked)
    streamed = [part.choices[0].logprobs for part in parts]
    assert [o for p in streamed if p for o in p.content or []] == whole.content
    for one in whole.content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == one.logprob <= 0


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        asked: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 2}
        return client.completions.create(seed=seed, **asked).choices[0].text

    assert ask(1) == ask(1)
    assert len({ask(None) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "other"}, 404, "there is no model 'other'; there are ['tiny']"),
        ({"prompt": "\x10" * (CONTEXT + 1)}, 400, "context"),
        ({"prompt": ""}, 400, "the prompt is empty"),
        ({"prompt": 5}, 400, "prompt: "),
        ({"n": 2}, 400, "n: "),
        ({"logprobs": 6}, 400, "logprobs: "),
        ({"tools": []}, 400, "tools: this server does not take it"),
        ({"response_format": {"type": "json_schema"}}, 400, "a schema is expected"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            400,
            "the schema cannot be kept to",
        ),
        ({"temperature": -1}, 400, "temperature: "),
        ({"max_tokens": -1}, 400, "max_tokens: "),
        ({"stop": ["a"] * 5}, 400, "stop: up to 4 texts"),
        ({"presence_penalty": 1}, 400, "presence_penalty: "),
    ],
)
def test_wrong_requests(server: str, change: dict[str, Any], status: int, words: str) -> None:
    body = {"model": "tiny", "prompt": PROMPT, **change}
    for stream in (False, True):
        found, answer = post(server, "/v1/completions", {**body, "stream": stream})
        assert found == status
        assert words in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]


def test_wrong_messages(server: str) -> None:
    for messages in ([], [{"role": "robot", "content": ""}], [{"role": "user"}], "text"):
        assert (
            post(server, "/v1/chat/completions", {"model": "tiny", "messages": messages})[0] == 400
        )
    long = [{"role": "user", "content": "a" * 2_000_000}]
    assert post(server, "/v1/chat/completions", {"model": "tiny", "messages": long})[0] == 413


def test_clients_that_go_away_free_their_place(server: str, client: openai.OpenAI) -> None:
    body = json.dumps({"model": "tiny", "prompt": PROMPT, "stream": True, "temperature": 0})
    for _ in range(5):
        connection = connect(server)
        connection.request("POST", "/v1/completions", body)
        connection.getresponse().fp.readline()
        connection.close()
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, timeout=10)
    assert answer.usage is not None


def connect(server: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.removeprefix("http://"), timeout=20)


def post(server: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    connection = connect(server)
    # A body that is too long is refused before it is read.
    with contextlib.suppress(BrokenPipeError):
        connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    found = answer.status, json.load(answer)
    connection.close()
    return found
