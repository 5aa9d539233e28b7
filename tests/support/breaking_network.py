"""A network that is cut: `with breaking_network(port, limit) as port:`.

Run as a program it forwards until so many bytes went to the server. A process of
its own, for TVM's client holds Python's lock while it waits.
"""

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def breaking_network(port: int, limit: int) -> Iterator[int]:
    """Provide a port of loopback that leads to another one, until it breaks; it has to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(listener.fileno()), str(port), str(limit)],
            pass_fds=[listener.fileno()],
        )
        try:
            yield int(listener.getsockname()[1])
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def forward(listener: socket.socket, port: int, limit: int) -> None:
    """Forward connections until together they have sent as much as the limit."""
    peers: dict[socket.socket, socket.socket] = {}
    clients = set()
    sent = 0
    while sent < limit:
        for end in select.select([listener, *peers], [], [])[0]:
            if end is listener:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                peers |= {client: server, server: client}
                clients.add(client)
            elif end in peers:
                data = end.recv(2**16)
                if data:
                    peers[end].sendall(data)
                    sent += len(data) * (end in clients)
                else:
                    for one in (end, peers[end]):
                        del peers[one]
                        one.close()


if __name__ == "__main__":
    forward(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
