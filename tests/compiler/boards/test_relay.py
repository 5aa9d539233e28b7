"""Ways to a board."""

import socket
import threading

import pytest

from edgec.compiler.boards import relay
from edgec.compiler.boards.config import Link
from edgec.compiler.boards.qemu import start_board
from edgec.compiler.errors import BoardError
from edgec.compiler.support.progress import Silent


@pytest.mark.parametrize("via", ["tracker", "proxy"])
def test_a_board_needs_a_registry_that_listens(via: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said to run, and nothing is fetched or started."""
    monkeypatch.setattr(relay, "REGISTRY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = Link.model_validate({"via": via, "port": port, "key": "pi"})
    message = rf"^no {via} answers at 127.0.0.1:{port} \(.*refused\); start one first: python -m"
    with pytest.raises(BoardError, match=message):
        start_board("qemu-rpi4", Silent(), link)


@pytest.mark.parametrize("answer", [b"HTTP", b""])
def test_another_server_is_no_tracker(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "REGISTRY_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4)
                client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        link = Link.model_validate({"via": "tracker", "port": server.getsockname()[1], "key": "pi"})
        with pytest.raises(BoardError, match="no tracker answers"):
            relay.check_registry(link)
        thread.join()


def test_a_registry_that_comes_up_late_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    up = threading.Event()
    found = threading.Event()

    def listen() -> None:
        up.wait()
        with socket.create_server(("127.0.0.1", port)):
            found.wait(10)

    thread = threading.Thread(target=listen)
    thread.start()
    threading.Timer(0.5, up.set).start()
    relay.check_registry(Link.model_validate({"via": "proxy", "port": port, "key": "pi"}))
    found.set()
    thread.join()
