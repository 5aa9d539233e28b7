"""Provide the server's side of secure aggregation: it collects messages, stage by stage.

It never holds more of the vectors than the sum of the masked ones.
"""

from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from edgec.compiler.errors import CalibrationError, KeyFileError, TrustError
from edgec.compiler.private_calibration import shamir
from edgec.compiler.private_calibration.masks import Words, mask, public_of
from edgec.compiler.private_calibration.secure_client import check_advertisement, pair_mask
from edgec.compiler.private_calibration.session import (
    STAGES,
    Advertisement,
    Confirmation,
    Confirmations,
    Roster,
    Session,
    Shares,
    Survivors,
    Unmasking,
    describe_wrong,
)
from edgec.compiler.serve.request_error import RequestError
from edgec.compiler.trust.keys import PublicKey

_Kind = TypeVar("_Kind", bound=BaseModel)


class SecureServer:
    """A secure server sums the vectors of clients without seeing one.

    Attributes:
        stage: the stage whose messages are taken; `done` after the last.
    """

    def __init__(
        self, session: Session, length: int, allowed: Collection[PublicKey] | None = None
    ) -> None:
        """Begin with the first stage.

        Args:
            session: what is summed.
            length: of the vectors.
            allowed: the identities that may take part; None takes the first that come.
        """
        self.stage = STAGES[0]
        self._session, self._length = session, length
        self._allowed = None if allowed is None else frozenset(allowed)
        self._advertised: list[Advertisement] = []
        self._roster = Roster(clients=())
        self._shares: dict[int, Shares] = {}
        self._sum = np.zeros(length, np.uint64)
        self._masked: set[int] = set()
        self._confirmed: dict[int, str] = {}
        self._unmasked: dict[int, Unmasking] = {}

    @property
    def summed(self) -> int:
        """Return how many vectors are in the sum."""
        return len(self._masked)

    @property
    def expected(self) -> int:
        """Return how many clients may send a message in this stage."""
        before = (
            self._session.clients,
            len(self._advertised),
            len(self._shares),
            len(self._masked),
            len(self._confirmed),
        )
        return before[STAGES.index(self.stage)]

    @property
    def received(self) -> int:
        """Return how many did."""
        after = (self._advertised, self._shares, self._masked, self._confirmed, self._unmasked)
        return len(after[STAGES.index(self.stage)])

    def receive(self, stage: str, number: int, signature: str, body: bytes) -> int:
        """Take a client's message, and return the client's number.

        Args:
            stage: what the client believes the stage to be.
            number: of the client; 0 where it has none yet.
            signature: by its identity, hexadecimal.
            body: the message.

        Raises:
            RequestError: it is malformed (400), not signed by a client that may (403), sent twice
                (409), or for a stage that is over or did not begin (410).
        """
        if stage != self.stage:
            raise RequestError(410, f"stage {stage} is not open now; {self.stage} is")
        if stage == "advertise":
            return self._advertise(_parsed(Advertisement, body))
        self._check_sender(stage, number, signature, body)
        takes: dict[str, Callable[[int, bytes], None]] = {
            "shares": self._take_shares,
            "masked": self._take_masked,
            "confirm": self._take_confirmation,
            "unmask": self._take_unmasking,
        }
        takes[stage](number, body)
        return number

    def _check_sender(self, stage: str, number: int, signature: str, body: bytes) -> None:
        senders = {
            "shares": range(1, len(self._advertised) + 1),
            "masked": self._shares,
            "confirm": self._masked,
            "unmask": self._confirmed,
        }[stage]
        if number not in senders:
            raise RequestError(403, f"client {number} did not take part in the stage before")
        identity = PublicKey.parse(self._advertised[number - 1].identity)
        try:
            given = bytes.fromhex(signature)
        except ValueError:
            given = b""
        if not identity.verifies(given, self._session.signed(stage, body)):
            raise RequestError(403, f"client {number} did not sign this message")
        sent = {
            "shares": self._shares,
            "masked": self._masked,
            "confirm": self._confirmed,
            "unmask": self._unmasked,
        }[stage]
        if number in sent:
            raise RequestError(409, f"client {number} sent its message of stage {stage} already")

    def _advertise(self, client: Advertisement) -> int:
        try:
            check_advertisement(self._session, client, self._allowed, "a client")
        except TrustError as error:
            raise RequestError(403, str(error)) from None
        if any(client.identity == other.identity for other in self._advertised):
            raise RequestError(409, f"{client.identity} takes part already; each client does once")
        if len(self._advertised) == self._session.clients:
            raise RequestError(410, f"{self._session.clients} clients take part already")
        self._advertised.append(client)
        return len(self._advertised)

    def _take_shares(self, number: int, body: bytes) -> None:
        shares = _parsed(Shares, body)
        if set(shares.sealed) != self._roster.neighbours(number):
            raise RequestError(400, "shares for each neighbour are expected, and for no other")
        self._shares[number] = shares

    def _take_masked(self, number: int, body: bytes) -> None:
        if len(body) != 8 * self._length:
            raise RequestError(
                400, f"the vector has {len(body)} bytes, {8 * self._length} are expected"
            )
        self._sum += np.frombuffer(body, "<u8")
        self._masked.add(number)

    def _take_confirmation(self, number: int, body: bytes) -> None:
        signature = _parsed(Confirmation, body).signature
        identity = PublicKey.parse(self._advertised[number - 1].identity)
        signed = self._session.signed("survivors", self._survivors.signed(self._roster))
        if not identity.verifies(bytes.fromhex(signature), signed):
            raise RequestError(403, f"client {number} did not sign the list of survivors")
        self._confirmed[number] = signature

    def _take_unmasking(self, number: int, body: bytes) -> None:
        unmasking = _parsed(Unmasking, body)
        held = {n for n in {*self._roster.neighbours(number), number} if n in self._shares}
        if set(unmasking.seeds) != held & self._masked or (
            set(unmasking.keys) != held - self._masked
        ):
            raise RequestError(400, "a share for each neighbour is expected, and for no other")
        self._unmasked[number] = unmasking

    @property
    def _survivors(self) -> Survivors:
        return Survivors(numbers=tuple(sorted(self._masked)))

    def close(self) -> Callable[[int], BaseModel] | None:
        """End the stage and begin the next; return what answers each client, None after the last.

        Raises:
            CalibrationError: too few clients sent their message; nothing is unmasked.
        """
        if self.received < self._session.threshold:
            raise CalibrationError(
                f"{self.received} of {self._session.clients} clients came through stage "
                f"{self.stage}, at least {self._session.threshold} must: nothing is unmasked; "
                "start again, with a longer --wait or a lower --threshold"
            )
        closed, following = self.stage, (*STAGES[1:], "done")[STAGES.index(self.stage)]
        self.stage = following
        if closed == "advertise":
            self._roster = Roster(clients=tuple(self._advertised))
            return lambda _number: self._roster
        if closed == "shares":
            return self._shares_for
        if closed == "masked":
            survivors = self._survivors
            return lambda _number: survivors
        if closed == "confirm":
            confirmations = Confirmations(signatures=self._confirmed)
            return lambda _number: confirmations
        return None

    def _shares_for(self, number: int) -> Shares:
        """Return what others sealed for a client."""
        return Shares(
            sealed={
                sender: shares.sealed[number]
                for sender, shares in self._shares.items()
                if number in shares.sealed
            }
        )

    def total(self) -> Words:
        """Return the sum of the vectors of all survivors, modulo 2^64; after the last stage.

        Raises:
            CalibrationError: a secret cannot be put together.
        """
        total = self._sum.copy()
        for number in sorted(self._masked):
            total -= mask(self._secret(number, seed=True), b"own", self._length)
        for number in sorted(set(self._shares) - self._masked):
            secret = self._secret(number, seed=False)
            if public_of(secret).hex() != self._advertised[number - 1].mask_key:
                raise CalibrationError(f"the shares of client {number} give another key than its")
            for other in sorted(self._roster.neighbours(number) & self._masked):
                public = bytes.fromhex(self._advertised[other - 1].mask_key)
                pair = pair_mask(secret, public, self._session, self._length)
                total = total - pair if other < number else total + pair
        return total

    def _secret(self, number: int, *, seed: bool) -> bytes:
        """Return a client's seed or mask key from the shares of others."""
        shares = {}
        for holder, unmasking in self._unmasked.items():
            share = (unmasking.seeds if seed else unmasking.keys).get(number)
            if share is not None:
                shares[holder] = int(share, 16)
        needed = self._roster.share_threshold(self._session)
        if len(shares) < needed:
            raise CalibrationError(
                f"{len(shares)} shares of client {number} came, {needed} are needed: nothing is "
                "unmasked; start again"
            )
        secret = shamir.join(dict(sorted(shares.items())[:needed]))
        if secret >= 1 << 256:
            raise CalibrationError(f"the shares of client {number} give no key; start again")
        return secret.to_bytes(32)


def _parsed(kind: type[_Kind], body: bytes) -> _Kind:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(400, describe_wrong(error.errors())) from None
    except KeyFileError as error:
        raise RequestError(400, str(error)) from None
