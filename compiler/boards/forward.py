"""Provide the relay's process: forwards one connection, and ends when its time is over.

It is a process of its own because TVM's client holds Python's lock while it waits, when it lets
go of an object on the board: a thread could neither forward nor watch the clock. Run by
`relay.py` as `forward.py LISTENER_FD BOARD_FD`; each line on stdin is a number of seconds until
it ends itself, 0 for no limit; it ends with stdin, so it never outlives who started it.
"""

import os
import signal
import socket
import sys
import threading

CHUNK_BYTES = 2**18


def main() -> None:
    """Forward until one side closes, stdin ends, or the alarm rings."""
    listener, board = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    threading.Thread(target=serve, args=(listener, board), daemon=True).start()
    for line in sys.stdin:
        # The signal's default action is the end of the process, and of its connections.
        signal.setitimer(signal.ITIMER_REAL, float(line))


def serve(listener: socket.socket, board: socket.socket) -> None:
    """Accept one client and forward in both directions."""
    client, _ = listener.accept()
    listener.close()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=forward, args=(client, board), daemon=True).start()
    forward(board, client)


def forward(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source closes, then end the process: half a connection is none."""
    try:
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    except OSError:
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
