"""Describe a session of private calibration, and the messages of its five stages.

Bonawitz et al. 2017, Practical secure aggregation for privacy-preserving machine learning, figure
4, with the consistency check; for many clients the sparse graph of Bell et al. 2020 (SecAgg+).

```text
advertise   two X25519 keys, signed            -> all that advertised
shares      sealed shares for the neighbours   -> the shares for this client
masked      the masked vector                  -> who sent one
confirm     a signature of that list           -> the signatures
unmask      shares of seeds or of mask keys    -> the result
```
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

STAGES = ("advertise", "shares", "masked", "confirm", "unmask")
MAX_CLIENTS = 10_000

# Beyond so many clients each shares with some neighbours only.
MAX_COMPLETE = 128
NEIGHBOURS = 100

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Number = Annotated[int, Field(ge=1, le=MAX_CLIENTS)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Noise(_Message):
    """A noise describes differential privacy of the result; the unit is all data of one client.

    Attributes:
        epsilon: the ε of (ε, δ)-differential privacy.
        delta: its δ.
        added_by: `clients`: each adds a share, the server sees a noisy sum; `server`: it adds all.
        low_log2: logarithms to base 2 of the largest values are clipped at this.
        high_log2: and at this.
    """

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=0.1)
    added_by: Literal["clients", "server"]
    low_log2: float = Field(ge=-64, le=64)
    high_log2: float = Field(ge=-64, le=64)

    @model_validator(mode="after")
    def _check(self) -> "Noise":
        if self.low_log2 >= self.high_log2:
            raise ValueError("the lower clipping bound is not below the upper one")
        return self


class Session(_Message):
    """A session describes what is summed, and over whom; clients decide by it if they take part.

    Attributes:
        version: of the protocol.
        id: 32 random bytes, hexadecimal.
        model: name of the ONNX file.
        model_sha256: its digest.
        shapes: full shape by input name, for inputs that the model leaves open.
        values: names of the values of which statistics are wanted.
        clients: how many take part.
        threshold: how many have to remain to the end.
        wait_seconds: how long the server waits for clients in each stage.
        noise: None sums without noise.
    """

    version: Literal[1] = 1
    id: Hex32
    model: str = Field(max_length=256)
    model_sha256: Hex32
    shapes: dict[str, tuple[int, ...]]
    values: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    clients: int = Field(ge=3, le=MAX_CLIENTS)
    threshold: int
    wait_seconds: float = Field(default=300.0, gt=0, le=86400)
    noise: Noise | None = None

    @model_validator(mode="after")
    def _check(self) -> "Session":
        if not self.clients < 2 * self.threshold <= 2 * self.clients:
            raise ValueError(
                f"the threshold is {self.threshold} of {self.clients} clients; more than half of "
                "them are needed"
            )
        return self

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of the session, which every signature covers."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    def signed(self, stage: str, body: bytes) -> bytes:
        """Return what a client signs to send a body in a stage."""
        return b"edgec private calibration " + stage.encode() + b"\0" + self.digest + body


class Advertisement(_Message):
    """An advertisement is the keys of one client.

    Attributes:
        identity: `ed25519:…`, the key that signs all that this client sends.
        encryption_key: X25519, of which keys to encrypt shares are made.
        mask_key: X25519, of which masks are made.
        signature: by the identity, over the two.
    """

    identity: str = Field(max_length=100)
    encryption_key: Hex32
    mask_key: Hex32
    signature: Hex64

    @property
    def signed(self) -> bytes:
        """Return what the signature covers beside the session."""
        return bytes.fromhex(self.encryption_key + self.mask_key)


class Roster(_Message):
    """A roster lists the clients that take part; the first has the number 1."""

    clients: tuple[Advertisement, ...]

    @property
    def digest(self) -> bytes:
        """Return the SHA-256 of the list."""
        return hashlib.sha256(self.model_dump_json().encode()).digest()

    def neighbours(self, number: int) -> frozenset[int]:
        """Return the clients that one shares masks and secrets with.

        All of them; beyond `MAX_COMPLETE` the nearest in a ring whose order nobody chooses before
        all keys are known.
        """
        count, everybody = len(self.clients), range(1, len(self.clients) + 1)
        if count <= MAX_COMPLETE:
            return frozenset(everybody) - {number}
        digest = self.digest
        ring = sorted(everybody, key=lambda n: hashlib.sha256(digest + _number(n)).digest())
        at = ring.index(number)
        half = NEIGHBOURS // 2
        return frozenset(ring[(at + d) % count] for d in range(-half, half + 1) if d)

    def share_threshold(self, session: Session) -> int:
        """Return how many of a client's holders must give their shares."""
        if len(self.clients) <= MAX_COMPLETE:
            return session.threshold
        return math.ceil(0.55 * (NEIGHBOURS + 1))


class Shares(_Message):
    """Shares are sealed, by the number of the client that can open them, or that sent them."""

    sealed: dict[Number, Annotated[str, Field(pattern=r"^[0-9a-f]{200,400}$")]]


class Survivors(_Message):
    """Survivors are the numbers of the clients whose vectors are summed, ascending."""

    numbers: tuple[Number, ...]

    def signed(self, roster: Roster) -> bytes:
        """Return what a client signs to confirm the list."""
        return roster.digest + b"".join(map(_number, self.numbers))


class Confirmation(_Message):
    """A confirmation is a client's signature of the survivors."""

    signature: Hex64


class Confirmations(_Message):
    """Confirmations are the signatures of the survivors, by client."""

    signatures: dict[Number, Hex64]


class Unmasking(_Message):
    """An unmasking holds a share for each client: of its seed if it survived, else of its key."""

    seeds: dict[Number, Annotated[str, Field(pattern=r"^[0-9a-f]{132}$")]]
    keys: dict[Number, Annotated[str, Field(pattern=r"^[0-9a-f]{132}$")]]


def _number(client: int) -> bytes:
    return client.to_bytes(4, "big")


def describe_wrong(fields: Sequence[Mapping[str, object]]) -> str:
    """Return the first of pydantic's errors as one line."""
    first = fields[0]
    place = first.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, tuple) else ""
    return f"{where or 'message'}: {first.get('msg')}"[:200]
