"""Take part in a session of private calibration: `join_session` sends a client's statistics."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from edgec.compiler.errors import BadInputError, TrustError, UsageError
from edgec.compiler.private_calibration.masks import Words
from edgec.compiler.private_calibration.secure_client import SecureClient
from edgec.compiler.private_calibration.session import (
    Confirmations,
    Roster,
    Session,
    Shares,
    Survivors,
    describe_wrong,
)
from edgec.compiler.trust.keys import PublicKey, SigningKey

_Kind = TypeVar("_Kind", bound=BaseModel)

_MAX_ANSWER_BYTES = 64 << 20
_MAX_MODEL_BYTES = 2 << 30
_TIMEOUT_SECONDS = 60.0


class Connection:
    """A connection asks one server of private calibration."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Check the URL.

        Args:
            url: http://… of this machine, or https://….
            key: sent as `Authorization: Bearer KEY`.

        Raises:
            BadInputError: it is none.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInputError(f"{url!r} is no address; http://HOST:PORT or https://… is expected")
        self._url, self._key = url.rstrip("/"), key

    def session(self) -> Session:
        """Return the server's session.

        Raises:
            BadInputError: the server does not answer, or as no such server does.
        """
        return _parsed(Session, self.ask("session"))

    def model(self) -> bytes:
        """Return the ONNX file.

        Raises:
            BadInputError: the server does not give it.
        """
        return self.ask("model", most=_MAX_MODEL_BYTES)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        signature: str = "",
        timeout: float = _TIMEOUT_SECONDS,
        most: int = _MAX_ANSWER_BYTES,
    ) -> bytes:
        """Return the answer to a GET, or to a POST of a body.

        Raises:
            BadInputError: the server does not answer, or refuses.
        """
        request = urllib.request.Request(f"{self._url}/{path}", body)
        if self._key is not None:
            request.add_header("Authorization", f"Bearer {self._key}")
        if signature:
            request.add_header("Edgec-Signature", signature)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                data: bytes = answer.read(most + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise BadInputError(f"{self._url}: {_line(error.read(4096))}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise BadInputError(f"{self._url} does not answer: {reason}") from None
        if len(data) > most:
            raise BadInputError(f"{self._url} answers with more than {most:,} bytes")
        return data


def _line(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200] or "the server refused"


def _parsed(kind: type[_Kind], data: bytes) -> _Kind:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise BadInputError(
            f"the server's answer is none of edgec calibrate: {describe_wrong(error.errors())}"
        ) from None


def join_session(
    connection: Connection,
    session: Session,
    vector: Words,
    identity: SigningKey,
    allowed: Collection[PublicKey] | None = None,
    reached: Callable[[str], None] = lambda _stage: None,
) -> None:
    """Send a vector through the stages of a session.

    Args:
        connection: to the server.
        session: what `connection.session` gave, if this client agrees with it.
        vector: what this client adds.
        identity: signs all that it sends.
        allowed: the identities that may take part; None lets the server say who does.
        reached: called with each stage before its message is sent.

    Raises:
        BadInputError: the server refuses, does not answer, or too few clients remain.
        TrustError: the server's answers are not what an honest one gives.
    """
    client = SecureClient(session, vector, identity, allowed)
    timeout = session.wait_seconds + _TIMEOUT_SECONDS

    def send(stage: str, body: bytes) -> bytes:
        reached(stage)
        signature = client.sign(stage, body)
        return connection.ask(f"{stage}?client={client.number}", body, signature, timeout)

    roster = _parsed(Roster, send("advertise", _body(client.advertise())))
    shares = _parsed(Shares, send("shares", _body(client.shares(roster))))
    survivors = _parsed(Survivors, send("masked", client.masked(shares)))
    confirmations = _parsed(Confirmations, send("confirm", _body(client.confirm(survivors))))
    send("unmask", _body(client.unmask(confirmations)))


def check_privacy(session: Session, most_epsilon: float | None) -> None:
    """Make sure that a session has the noise that a client asks for, and has it from the clients.

    Raises:
        TrustError: it has not.
    """
    if most_epsilon is None:
        return
    if most_epsilon <= 0:
        raise UsageError(f"--max-epsilon {most_epsilon:g}: a number above 0 is expected")
    noise = session.noise
    if noise is None or noise.added_by != "clients" or noise.epsilon > most_epsilon:
        found = (
            "no noise" if noise is None else f"epsilon {noise.epsilon:g} by the {noise.added_by}"
        )
        raise TrustError(
            f"this session has {found}; --max-epsilon {most_epsilon:g} takes noise by the clients "
            "of that or less: nothing was sent"
        )


def _body(message: BaseModel) -> bytes:
    return message.model_dump_json().encode()
