"""Provide the host's side of a connection with a stage: frames over TCP, sealed by Noise.

The other side is `compiler/bundle/runner/connection.c`. A frame is a header of 16 bytes and a
payload. With a key everything is encrypted and authenticated by `PROTOCOL` of the Noise framework
(https://noiseprotocol.org): a sealed message has its length before it, 2 bytes big-endian.
"""

import contextlib
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.compiler.errors import BoardError, KeyFileError
from edgec.compiler.support.addresses import is_loopback

if TYPE_CHECKING:
    from noise.connection import NoiseConnection

PROTOCOL = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b"
PROLOGUE = b"edgec stage 1"
PLAIN_PREFACE, SEALED_PREFACE = b"edgec-p1", b"edgec-s1"
KEY_BYTES = 32
HANDSHAKE_BYTES = 48
TAG_BYTES = 16
MOST_SEALED_BYTES = 65535
# Kernel's struct timeval.
_TIMEVAL = struct.Struct("@ll")
# type, flags, program, value, payload bytes, request
_HEADER = struct.Struct("<BBBBIQ")
BEGINS = 1


class FrameType(IntEnum):
    """A frame type says what a frame is for; see connection.h."""

    HELLO = 1
    ROUTES = 2
    READY = 3
    DATA = 4
    CREDIT = 5
    DONE = 6
    PING = 7
    PONG = 8
    ERROR = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame describes the payload that follows it.

    Attributes:
        kind: what it is for.
        flags: of DATA: BEGINS if the stream begins anew.
        program: of DATA: number of the program.
        value: of DATA: number of the value; of ERROR: number of the stage that is to blame.
        size: bytes of the payload.
        request: number of the request; of CREDIT the first that may not be sent.
    """

    kind: int
    flags: int = 0
    program: int = 0
    value: int = 0
    size: int = 0
    request: int = 0

    def packed(self) -> bytes:
        """Return the header."""
        return _HEADER.pack(
            self.kind, self.flags, self.program, self.value, self.size, self.request
        )


class LinkError(Exception):
    """A connection is of no more use; the message goes on from the name of the other side.

    Attributes:
        culprit: number of the stage that is to blame, if the other side says that it is another.
    """

    def __init__(self, message: str, culprit: int | None = None) -> None:
        super().__init__(message)
        self.culprit = culprit


def read_key(path: str | Path) -> bytes:
    """Return the key of a file: 64 hexadecimal digits.

    Raises:
        KeyFileError: it cannot be read, or holds something else.
    """
    try:
        text = Path(path).read_text("ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise KeyFileError(f"key {path} cannot be read: {error.strerror}") from None
    except ValueError:
        text, key = "", b""
    if len(key) != KEY_BYTES or text != key.hex():
        raise KeyFileError(
            f"key {path} is not 64 hexadecimal digits of lower case; write one: "
            "openssl rand -hex 32, or python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return key


def new_key() -> str:
    """Return a random key as a key file holds it."""
    return secrets.token_hex(KEY_BYTES)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port.

    >>> split_address("[::1]:7000")
    ('::1', 7000)

    Raises:
        BoardError: it is no address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise BoardError(f"{address!r} is no address; give HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Connection:
    """A connection is the host's with one stage. Threads may send; one thread reads.

    Attributes:
        address: the address of the stage.
        sent_bytes: bytes that were sent.
        received_bytes: bytes that were received.
    """

    def __init__(self, address: str, key: bytes | None, timeout: float) -> None:
        """Connect, and show each other the key.

        Args:
            address: HOST:PORT.
            key: 32 bytes that both sides know; None on this machine only.
            timeout: seconds without a byte after which the other side is taken for dead.

        Raises:
            LinkError: there is no connection, or the other side does not know the key.
        """
        self.address = address
        self.sent_bytes = self.received_bytes = 0
        self.last_sent = 0.0
        self._sending = threading.Lock()
        self._noise: NoiseConnection | None = None
        self._buffer = memoryview(b"")
        host, port = split_address(address)
        if key is None and not is_loopback(host):
            raise LinkError("is beyond this machine, and there is no key: add --key FILE")
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise LinkError(f"cannot be reached: {error.strerror or error}") from None
        try:
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.set_timeout(timeout)
            self._send_bytes(PLAIN_PREFACE if key is None else SEALED_PREFACE)
            if key is not None:
                self._shake_hands(key)
        except BaseException:
            self._socket.close()
            raise

    def set_timeout(self, timeout: float) -> None:
        """Set how long there may be silence [s]."""
        value = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def _shake_hands(self, key: bytes) -> None:
        # Imported here: it takes a while, and is needed with a key only.
        from cryptography.exceptions import InvalidTag
        from noise.connection import NoiseConnection

        noise = NoiseConnection.from_name(PROTOCOL)
        noise.set_as_initiator()
        noise.set_prologue(PROLOGUE)
        noise.set_psks(key)
        noise.start_handshake()
        self._send_bytes(noise.write_message())
        answer = bytearray(HANDSHAKE_BYTES)
        try:
            self._receive_into(memoryview(answer))
            noise.read_message(bytes(answer))
        except (InvalidTag, LinkError):
            raise LinkError("does not know the key, or was started without --key") from None
        self._noise = noise

    def send(self, frame: Frame, payload: "memoryview | bytes" = b"") -> None:
        """Send a frame.

        Raises:
            LinkError: the connection broke.
        """
        with self._sending:
            self._send_frame(frame, payload)

    def _send_frame(self, frame: Frame, payload: "memoryview | bytes") -> None:
        header, view = frame.packed(), memoryview(payload)
        if self._noise is None:
            if len(view) < MOST_SEALED_BYTES:
                self._send_bytes(header + view)
            else:
                self._send_bytes(header)
                self._send_bytes(view)
            return
        room = MOST_SEALED_BYTES - TAG_BYTES
        first = header + view[: room - len(header)]
        rest = view[room - len(header) :]
        for start in range(-1, len(rest), room):
            part = first if start < 0 else bytes(rest[start : start + room])
            self._send_sealed(part)
            if start < 0 and not len(rest):
                break

    def _send_sealed(self, part: bytes) -> None:
        assert self._noise is not None
        sealed = self._noise.encrypt(part)
        self._send_bytes(len(sealed).to_bytes(2, "big") + sealed)

    def _send_bytes(self, data: "memoryview | bytes") -> None:
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise LinkError("takes nothing") from None
        except OSError as error:
            raise LinkError(f"broke the connection: {error.strerror or error}") from None
        self.sent_bytes += len(data)
        self.last_sent = time.monotonic()

    def ping(self, within: float) -> None:
        """Send PING unless something was sent in so many seconds, or is being sent."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self.last_sent >= within:
                self._send_frame(Frame(FrameType.PING), b"")
        finally:
            self._sending.release()

    def read_frame(self) -> Frame:
        """Read a header.

        Raises:
            LinkError: the connection broke, or nothing came for too long.
        """
        header = bytearray(_HEADER.size)
        self.read_into(memoryview(header))
        return Frame(*_HEADER.unpack(header))

    def read(self, size: int) -> bytes:
        """Read so many bytes of a payload."""
        data = bytearray(size)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_into(self, data: memoryview) -> None:
        """Fill memory with the next bytes."""
        if self._noise is None:
            self._receive_into(data)
            return
        while len(data):
            if not len(self._buffer):
                self._buffer = memoryview(self._receive_sealed())
            part = min(len(data), len(self._buffer))
            data[:part] = self._buffer[:part]
            data, self._buffer = data[part:], self._buffer[part:]

    def _receive_sealed(self) -> bytes:
        from cryptography.exceptions import InvalidTag
        from noise.exceptions import NoiseInvalidMessage

        assert self._noise is not None
        length = bytearray(2)
        self._receive_into(memoryview(length))
        sealed = bytearray(int.from_bytes(length, "big"))
        self._receive_into(memoryview(sealed))
        try:
            return bytes(self._noise.decrypt(bytes(sealed)))
        except (InvalidTag, NoiseInvalidMessage):
            raise LinkError("sent a message that was changed on its way") from None

    def _receive_into(self, data: memoryview) -> None:
        while len(data):
            try:
                got = self._socket.recv_into(data)
            except BlockingIOError:
                raise LinkError("is silent") from None
            except OSError as error:
                raise LinkError(f"broke the connection: {error.strerror or error}") from None
            if not got:
                raise LinkError("closed the connection")
            self.received_bytes += got
            data = data[got:]

    def close(self) -> None:
        """End it; a thread that reads or sends wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Let go of the socket, when no thread uses it any more."""
        self._socket.close()
