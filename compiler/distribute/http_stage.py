"""Provide the stage that a server computes: the Open Inference Protocol, version 2, over HTTP.

`edgec serve`, Triton Inference Server, KServe and OpenVINO Model Server speak it. Tensors are sent
by its binary extension. Source: github.com/open-inference/open-inference-protocol,
specification/protocol/inference_rest.md.
"""

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.distribute.connection import LinkError
from edgec.compiler.errors import BadInputError, BundleError, UsageError
from edgec.compiler.serve.tensors import DATATYPES
from edgec.compiler.support.addresses import is_loopback

_HEADER = "Inference-Header-Content-Length"
_WORDS = 200
_DURATION = re.compile(r"\bdur=(\d+(?:\.\d+)?)")


def is_http(address: str) -> bool:
    """Return whether an address is of a server of this protocol."""
    return address.startswith(("http://", "https://"))


class HttpStage:
    """An HTTP stage asks a server for one stage of a plan, over a connection that is kept.

    One thread calls it.

    Attributes:
        server_seconds: the part of the last call that the server says it took for itself; 0 where
            it does not say (`Server-Timing`, https://www.w3.org/TR/server-timing/).
    """

    def __init__(self, url: str, bundle: Bundle, timeout: float, key_file: Path | None) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: `http://HOST:PORT`, where the model is called as the bundle, or with the path
                `/v2/models/NAME`.
            bundle: the stage, for its name and outputs.
            timeout: seconds that the server may be silent.
            key_file: holds what the server wants as `Authorization: Bearer`; None: nothing.

        Raises:
            UsageError: it is not encrypted, and goes beyond this machine.
            BundleError: the bundle has state, which a server would keep for us or not.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http" and not is_loopback(host):
            raise UsageError(
                f"{url} is beyond this machine, where everyone could read: use https://"
            )
        if bundle.manifest.states:
            raise BundleError(f"bundle {bundle.path} has state; a stage over HTTP may have none")
        path = parts.path.rstrip("/")
        name = bundle.path.name.removesuffix(".tar").removesuffix(".edgec")
        self._path = f"{path or f'/v2/models/{name}'}/infer"
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = kind(host, parts.port, timeout=timeout)
        self._headers = {"Content-Type": "application/octet-stream"}
        if key_file is not None:
            self._headers["Authorization"] = f"Bearer {_read(key_file)}"
        self.server_seconds = 0.0
        self._signatures = bundle.manifest.signatures

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return outputs by name.

        Raises:
            LinkError: the server does not answer, or not as it should.
        """
        blobs = {name: np.ascontiguousarray(array).tobytes() for name, array in inputs.items()}
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "datatype": DATATYPES[str(array.dtype)],
                        "shape": list(array.shape),
                        "parameters": {"binary_data_size": len(blobs[name])},
                    }
                    for name, array in inputs.items()
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        headers = {**self._headers, _HEADER: str(len(head))}
        body, length = self._post(b"".join([head, *blobs.values()]), headers)
        try:
            outputs = _read_outputs(body, length)
        except (ValueError, KeyError, TypeError):
            raise LinkError("answers what is not of the Open Inference Protocol") from None
        shapes = {name: array.shape for name, array in inputs.items()}
        for signature in self._signatures.values():
            if {spec.name: spec.shape for spec in signature.inputs} == shapes:
                for spec in signature.outputs:
                    found = outputs.get(spec.name)
                    if found is None or found.shape != spec.shape or str(found.dtype) != spec.dtype:
                        raise LinkError(f"gives no output {spec}, which the plan needs")
        return outputs

    def _post(self, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, str | None]:
        """Return the answer's body, and how long its JSON is. A connection that aged is renewed."""
        aged = self._connection.sock is not None
        try:
            self._connection.request("POST", self._path, body, dict(headers))
            answer = self._connection.getresponse()
            data = answer.read()
        except TimeoutError:
            self._connection.close()
            raise LinkError("is silent") from None
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if aged:
                return self._post(body, headers)
            raise LinkError(f"cannot be reached: {error}") from None
        if answer.status != http.client.OK:
            raise LinkError(f"answers {answer.status}: {data[:_WORDS].decode(errors='replace')}")
        found = _DURATION.search(answer.getheader("Server-Timing") or "")
        self.server_seconds = float(found.group(1)) / 1e3 if found else 0.0
        return data, answer.getheader(_HEADER)

    def close(self) -> None:
        """Let go of the connection; a call that waits ends."""
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _read_outputs(body: bytes, length: str | None) -> dict[str, NDArray[Any]]:
    end = len(body) if length is None else int(length)
    outputs = {}
    for tensor in json.loads(body[:end])["outputs"]:
        dtype = _dtype(tensor["datatype"])
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.asarray(tensor["data"]).astype(dtype)
        else:
            values = np.frombuffer(body[end : end + int(size)], dtype)
            end += int(size)
        outputs[tensor["name"]] = values.reshape(tensor["shape"])
    return outputs


def _dtype(datatype: str) -> np.dtype[Any]:
    name = next(name for name, known in DATATYPES.items() if known == datatype)
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"key file {path} cannot be read: {error}") from None
