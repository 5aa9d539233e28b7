"""Servers answer clients that others wrote, over real sockets."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from support.onnx_graphs import make_model, node, random, save
from support.serving import Serving

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.errors import BadInputError, UsageError
from edgec.compiler.serve.server import ServeOptions, serve_bundles
from edgec.compiler.serve.tensors import read_request

KEY = "a key of sixteen characters"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of programs for 1 and for 4 rows."""
    nodes = [node("Gemm", ["x", "w"], ["g"]), node("Relu", ["g"], ["y"])]
    model = make_model(nodes, {"x": ["rows", 8]}, ["y"], {"w": random(8, 3)})
    folder = tmp_path_factory.mktemp("rows")
    options = CompileOptions(programs={"one": {"x": (1, 8)}, "four": {"x": (4, 8)}})
    return compile_model(save(model, folder), "native", options, output=folder / "rows.edgec")


@pytest.fixture(scope="module")
def total(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that adds what it is given to what it remembers."""
    nodes = [node("Add", ["x", "s"], ["t"]), node("Identity", ["t"], ["y"])]
    model = make_model(nodes, {"x": [2], "s": [2]}, ["y", "t"])
    folder = tmp_path_factory.mktemp("total")
    options = CompileOptions(states=["s=t"])
    return compile_model(save(model, folder), "native", options, output=folder / "total.edgec")


@pytest.fixture(scope="module")
def server(rows: Bundle, total: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with Serving([str(rows.path), f"sum={total.path}", "--sessions", "2"], log) as url:
        yield url


def client(url: str) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(url.removeprefix("http://"), concurrency=8)


def ask(
    of: Any, model: str, x: NDArray[Any], *, binary: bool = True, **options: Any
) -> NDArray[Any]:
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
    answer: NDArray[Any] = of.infer(model, [given], outputs=wanted, **options).as_numpy("y")
    return answer


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_tritons_client(server: str, rows: Bundle) -> None:
    of = client(server)
    assert of.is_server_live()
    assert of.is_server_ready()
    assert of.is_model_ready("rows")
    assert not of.is_model_ready("other")
    assert of.get_server_metadata()["name"] == "edgec"
    metadata = of.get_model_metadata("rows")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    x = random(4, 8)
    expected = rows.run({"x": x})["y"]
    assert np.array_equal(ask(of, "rows", x), expected)
    assert np.allclose(ask(of, "rows", x, binary=False), expected, rtol=1e-6)
    assert not np.array_equal(ask(of, "rows", x + 1), expected)


def test_requests_in_any_order_get_the_answers_of_one_after_the_other(
    server: str, rows: Bundle
) -> None:
    choose = np.random.default_rng(0)
    given = [random(int(choose.integers(1, 5)), 8, seed=seed) for seed in range(300)]
    session = rows.open(threads=1)
    expected = [np.concatenate([session.run({"x": row[None]})["y"] for row in x]) for x in given]
    of = client(server)
    with ThreadPoolExecutor(8) as threads:
        # Its client belongs to one thread each.
        clients = [of, *(client(server) for _ in range(7))]
        numbers = np.random.default_rng(1).permutation(len(given)).tolist()
        parts = [numbers[start::8] for start in range(8)]

        def run(number: int) -> list[tuple[int, NDArray[Any]]]:
            return [(n, ask(clients[number], "rows", given[n])) for n in parts[number]]

        answers = dict(pair for part in threads.map(run, range(8)) for pair in part)
    assert len(answers) == len(given)
    assert all(np.allclose(answers[n], expected[n], atol=1e-5) for n in numbers)


def test_streams_have_states_of_their_own(server: str) -> None:
    of, x = client(server), np.array([1, 2], np.float32)

    def step(name: int, values: NDArray[Any], **flags: bool) -> list[float]:
        answer: list[float] = ask(of, "sum", values, sequence_id=name, **flags).tolist()
        return answer

    assert step(5, x, sequence_start=True) == [1, 2]
    assert step(6, 10 * x, sequence_start=True) == [10, 20]
    assert step(5, x) == [2, 4]
    assert step(6, x, sequence_end=True) == [11, 22]
    assert ask(of, "sum", x).tolist() == [1, 2]
    assert step(5, x) == [3, 6]
    assert step(5, x, sequence_start=True) == [1, 2]
    with pytest.raises(triton.InferenceServerException, match="no sequence '6'"):
        step(6, x)
    step(6, x, sequence_start=True)
    with pytest.raises(triton.InferenceServerException, match="2 sequences are under way"):
        step(7, x, sequence_start=True)


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 8], "data": [0.0] * 8}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"data": [0.0] * 7}, 400, "is not FP32 [1, 8]"),
        ({"data": ["a"] * 8}, 400, "no number"),
        ({"data": [[0.0], [0.0, 1.0]]}, 400, "is not FP32"),
        ({"data": None}, 400, "neither data nor binary_data_size"),
        ({"datatype": "FP31"}, 400, "known are"),
        ({"datatype": "INT8", "data": [300] * 8}, 400, "values beyond -128 to 127"),
        ({"datatype": "INT8", "data": [0.5] * 8}, 400, "fractions"),
        ({"shape": [-1, 8]}, 400, "inputs.0.shape.0"),
        ({"shape": [2, 8], "data": [0.0] * 16, "datatype": "FP64"}, 400, "float64"),
        ({"shape": [3, 9], "data": [0.0] * 27}, 400, "no program of this bundle takes"),
        ({"name": "z"}, 400, "there are one (x"),
        ({"parameters": {"binary_data_size": 32}}, 400, "ends behind the body"),
        ({"parameters": {"binary_data_size": 10**12}}, 400, "takes 32 bytes"),
    ],
)
def test_wrong_requests_are_answered_in_one_line(
    server: str, change: dict[str, Any], status: int, words: str
) -> None:
    body = json.dumps({"inputs": [{**GOOD, **change}]}).encode()
    found, answer = post(f"{server}/v2/models/rows/infer", body)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert "\n" not in answer["error"]


def test_what_is_no_request(server: str) -> None:
    infer = f"{server}/v2/models/rows/infer"
    good = json.dumps({"inputs": [GOOD]}).encode()
    assert post(infer, good)[0] == 200
    assert post(infer, b"{")[0] == 400
    assert post(infer, b"\xff\x00")[0] == 400
    assert (
        post(infer, good + b"rest", **{"Inference-Header-Content-Length": str(len(good))})[0] == 400
    )
    assert post(infer, good, **{"Inference-Header-Content-Length": "-1"})[0] == 400
    assert post(infer, good, **{"Content-Length": "9000000"})[0] == 413
    assert post(f"{server}/v2/models/none/infer", good)[0] == 404
    assert post(f"{server}/v2/models/rows/versions/7/infer", good)[0] == 404
    assert post(f"{server}/v2/health/live", good)[0] == 405
    unknown = json.dumps({"inputs": [GOOD], "outputs": [{"name": "q"}]}).encode()
    assert post(infer, unknown)[1]["error"] == "the model has no output 'q'; it has ['y']"


def test_clients_that_go_away_leave_the_server_well(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    for length in (10, 400_000):
        with socket.create_connection((host, int(port))) as connection:
            lines = ("POST /v2/models/rows/infer HTTP/1.1", "Host: x", f"Content-Length: {length}")
            connection.sendall("\r\n".join((*lines, "", "{")).encode())
    time.sleep(0.1)
    assert ask(client(server), "rows", random(1, 8)).shape == (1, 3)


def test_a_key_is_wanted(total: Bundle, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    arguments = [f"sum={total.path}", "--key-file", str(tmp_path / "key")]
    with Serving(arguments, tmp_path / "log") as url:
        of, x = client(url), np.zeros(2, np.float32)
        with pytest.raises(triton.InferenceServerException, match="key is missing or wrong"):
            ask(of, "sum", x)
        headers = {"Authorization": f"Bearer {KEY}"}
        assert ask(of, "sum", x, headers=headers).tolist() == [0, 0]
        assert post(f"{url}/v2/models/sum/infer", b"", Authorization=f"Bearer {KEY}x")[0] == 401


def test_what_cannot_be_served(total: Bundle) -> None:
    with pytest.raises(UsageError, match="reached from other machines: give a key"):
        ServeOptions(host="0.0.0.0")
    with pytest.raises(UsageError, match="16 characters"):
        ServeOptions(key="short")
    with pytest.raises(UsageError, match="named 'a/b'"):
        serve_bundles({"a/b": total})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve_bundles({"sum": total}, ServeOptions(port=port))


def test_a_long_nested_list_is_refused() -> None:
    deep = b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(Exception, match="not of the protocol"):
        read_request(deep, None)
