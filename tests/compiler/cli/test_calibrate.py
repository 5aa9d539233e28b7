"""`edgec calibrate` and `compile --ranges`: ranges of clients, and what is refused about them."""

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.cli_calls import Call, check_error
from support.onnx_graphs import make_model, node, random, save

from edgec.compiler import Bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    product = node("MatMul", ["x", "w"], ["y"])
    proto = make_model([product], {"x": (1, 8)}, ["y"], {"w": random(8, 4)})
    return save(proto, tmp_path_factory.mktemp("model"))


def _join(port: int, data: Path) -> None:
    """Take part as soon as the server listens, in a process: TVM imports one model at a time."""
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    join = ("calibrate", "join", f"http://127.0.0.1:{port}", "--data", str(data), "-q")
    subprocess.run([sys.executable, "-m", "edgec.compiler", *join], check=True)


def test_ranges_of_clients_and_a_bundle_of_them(call: Call, model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    np.save(tmp_path / "x.npy", random(4, 8))
    clients = [threading.Thread(target=_join, args=(port, tmp_path / "x.npy")) for _ in range(3)]
    for client in clients:
        client.start()
    code, out, err = call(
        *("calibrate", "serve", model, "--clients", 3, "--wait", 30, "--port", port),
        *("-o", "ranges.json"),
    )
    for client in clients:
        client.join()
    assert code == 0, err
    assert "ranges.json: 1 ranges over 3 clients" in out
    (warning,) = err.splitlines()
    assert warning.startswith("edgec: warning: without --roster the first 3 that come take part")

    compile_int8 = ("compile", model, "--quantize", "int8", "-q", "-o", "m.edgec", "--ranges")
    code, _, err = call(*compile_int8, "ranges.json")
    assert code == 0, err
    record = Bundle.load(tmp_path / "m.edgec").manifest.quantization
    assert record is not None
    assert record.clients is not None
    assert record.clients.summed == 3

    ranges = json.loads((tmp_path / "ranges.json").read_text())
    ranges["model"] = "ab" * 32
    (tmp_path / "other.json").write_text(json.dumps(ranges))
    (tmp_path / "wrong.json").write_text('{"ranges": {}}')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    for name, message in (
        ("other.json", "ranges other.json are of another model (SHA-256 abababababab…"),
        ("wrong.json", "ranges wrong.json: model: Field required; edgec calibrate serve writes"),
        ("binary.json", "ranges binary.json are no JSON"),
        ("none.json", "ranges none.json cannot be read: No such file"),
        (".", "ranges . cannot be read: Is a directory"),
    ):
        check_error(call(*compile_int8, name), 4, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--observer", "mse"], "--ranges and --observer contradict each other"),
        (["--calibration-cache", "c.json"], "--ranges and --calibration-cache contradict"),
    ],
)
def test_what_ranges_leave_no_room_for(
    call: Call, model: Path, arguments: list[str], message: str
) -> None:
    given = ("--quantize", "int8", "--ranges", "r.json", *arguments)
    check_error(call("compile", model, "-q", *given), 2, message)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--clients", "4", "--threshold", "2"], 2, "threshold"),
        (["--clients", "3", "--port", "-1"], 2, "port -1 is none"),
        (["--clients", "3", "--epsilon", "1", "--clip", "x"], 2, "--clip 'x': LOW,HIGH"),
        (["--clients", "3", "--roster", "none"], 4, "roster none cannot be read"),
        (["--clients", "3", "-t", "nope"], 4, "unknown target 'nope'"),
        (["--clients", "3", "-o", "."], 4, "cannot write"),
    ],
)
def test_a_session_that_cannot_be(
    call: Call, model: Path, arguments: list[str], code: int, message: str
) -> None:
    check_error(call("calibrate", "serve", model, "-o", "r.json", *arguments), code, message)


def test_a_server_that_is_not_there(call: Call, model: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    np.save(tmp_path / "x.npy", random(4, 8))
    check_error(call("calibrate", "join", url, "--data", "x.npy", "-q"), 4, "127.0.0.1")
    check_error(
        call("calibrate", "join", "here", "--data", "x.npy", "-q"), 4, "'here' is no address"
    )
