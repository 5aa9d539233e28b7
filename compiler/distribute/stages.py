"""Describe stages as the host sees them: where they are, what they did, that one is lost."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from edgec.compiler.errors import BoardError

Outputs = dict[str, NDArray[Any]]


class StageLostError(BoardError):
    """A stage does not answer any more, or never did.

    Attributes:
        device: the device of the stage.
    """

    def __init__(self, device: str, address: str, why: str) -> None:
        super().__init__(f"device {device} ({address}) {why}")
        self.device = device


class RelayedStage(Protocol):
    """A relayed stage computes a stage of the plan by another protocol than edgec's.

    Attributes:
        server_seconds: the part of the last call in which it computed, as far as it is known.
    """

    server_seconds: float

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        """Return outputs by name.

        Raises:
            LinkError: the server does not answer, or not as it should.
        """


@dataclass(frozen=True)
class StageTimes:
    """Stage times say when a stage did what for a request, on this machine's monotonic clock [ns].

    Attributes:
        request: its number.
        stage: number of the stage.
        arrived: all inputs were there.
        began: the model began to run.
        ended: the model had run.
        sent: all outputs were sent.
    """

    request: int
    stage: int
    arrived: int
    began: int
    ended: int
    sent: int


@dataclass(frozen=True)
class StageAddress:
    """A stage address says where a stage is.

    Attributes:
        device: its name.
        address: HOST:PORT, or where a relayed stage is, in words.
        digest: SHA-256 of the manifest that its bundle must have.
        relayed: what computes it; None for stages of edgec.
    """

    device: str
    address: str
    digest: bytes
    relayed: RelayedStage | None = None


def digest_of(manifest: bytes) -> bytes:
    """Return what a stage says of its bundle."""
    return hashlib.sha256(manifest).digest()
