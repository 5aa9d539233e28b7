"""Clients and a server of secure aggregation in this process, and all that the server receives."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgec.compiler.private_calibration.masks import Words
from edgec.compiler.private_calibration.secure_client import SecureClient
from edgec.compiler.private_calibration.secure_server import SecureServer
from edgec.compiler.private_calibration.session import STAGES, Session
from edgec.compiler.trust.keys import SigningKey


def new_session(clients: int, threshold: int, values: int = 1) -> Session:
    names = tuple(f"v{i}" for i in range(values))
    return Session(
        id="5e" * 32,
        model="m.onnx",
        model_sha256="00" * 32,
        shapes={},
        values=names,
        clients=clients,
        threshold=threshold,
    )


def new_key() -> SigningKey:
    return SigningKey("once", Ed25519PrivateKey.generate())


@dataclass
class Sum:
    """What came of a sum.

    Attributes:
        total: the sum.
        summed: the indices of the clients in it, from 0 on.
        received: stage, client and body of every message.
    """

    total: Words
    summed: list[int]
    received: list[tuple[str, int, bytes]]


def secure_sum(session: Session, vectors: list[Words], drops: Mapping[str, int]) -> Sum:
    """Sum vectors; so many clients are not heard of from each stage on."""
    server = SecureServer(session, len(vectors[0]))
    clients = [SecureClient(session, vector, new_key()) for vector in vectors]
    received, alive, summed = [], list(range(len(clients))), []
    for client in clients:
        body = client.advertise().model_dump_json().encode()
        received.append(("advertise", server.receive("advertise", 0, "", body), body))
    answer = server.close()
    for stage in STAGES[1:]:
        alive = alive[drops.get(stage, 0) :]
        for index in alive:
            client = clients[index]
            message = getattr(client, stage)(answer(client.number))
            body = message if isinstance(message, bytes) else message.model_dump_json().encode()
            server.receive(stage, client.number, client.sign(stage, body), body)
            received.append((stage, client.number, body))
        if stage == "masked":
            summed = list(alive)
        answer = server.close()
    return Sum(server.total(), summed, received)


def looks_random(body: bytes) -> bool:
    """Return whether a vector's bytes are spread evenly: chi-squared over 256 values.

    255 degrees of freedom, deviation 22.6: six of them either way.
    """
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = len(body) / 256
    return bool(abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * 22.6)
