"""Take part in a session of private calibration: `join_session` sends a client's statistics."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from edgec.compiler.errors import BadInputError, CalibrationError, TrustError
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
from edgec.compiler.serve.server import is_loopback
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
