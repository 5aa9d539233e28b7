"""Bundles behind web servers that answer with many threads and processes."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgec.compiler import Bundle

CLIENTS, REQUESTS = 8, 40

APPLICATION = """
import os
import numpy as np
from flask import Flask
from edgec.compiler import Bundle

app = Flask(__name__)
bundle = Bundle.load(os.environ["BUNDLE"])
# Before a server forks: its threads do not come along.
bundle.run({"x": np.zeros((1, 3, 48, 48), np.float32)}, threads=2)

@app.get("/<int:seed>")
def answer(seed):
    image = np.random.default_rng(seed).random((1, 3, 48, 48), np.float32)
    return bundle.run({"x": image}, threads=2)["y"].tobytes()
"""


@contextmanager
def serving(folder: Path, bundle: Path, command: list[str], port: int) -> Iterator[None]:
    """A server with the application above."""
    (folder / "application.py").write_text(APPLICATION)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env={"BUNDLE": str(bundle), "PATH": "/usr/bin:/bin"},
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(600):
                assert server.poll() is None, (folder / "log").read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait(30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["flask", "gunicorn", "gunicorn --preload"])
def test_every_client_gets_its_own_answer(kind: str, shared: Path, tmp_path: Path) -> None:
    port = free_port()
    if kind == "flask":
        command = ["flask", "--app", "application", "run", "--port", str(port)]
    else:
        command = [
            *("gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "4"),
            *(*kind.split()[1:], "application:app"),
        ]
    bundle = Bundle.load(shared)

    def expected(seed: int) -> bytes:
        image = np.random.default_rng(seed).random((1, 3, 48, 48), np.float32)
        return bundle.run({"x": image})["y"].tobytes()

    def client(number: int) -> list[bytes]:
        answers = []
        for request in range(REQUESTS):
            address = f"http://127.0.0.1:{port}/{number * REQUESTS + request}"
            with urllib.request.urlopen(address, timeout=60) as reply:
                answers.append(reply.read())
        return answers

    with (
        serving(tmp_path, shared, command, port),
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        answers = [answer for part in clients.map(client, range(CLIENTS)) for answer in part]
    right = [expected(seed) for seed in range(CLIENTS * REQUESTS)]
    assert answers == right
    assert len(set(right)) == len(right)
