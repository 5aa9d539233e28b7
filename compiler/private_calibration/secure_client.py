"""Provide the client's side of secure aggregation: what it sends, and what it refuses.

A client never gives shares of both a client's seed and its mask key: with both the server could
take the masks off one vector.
"""

import secrets
from collections.abc import Collection

from edgec.compiler.errors import KeyFileError, TrustError
from edgec.compiler.private_calibration import shamir
from edgec.compiler.private_calibration.masks import (
    KEY_BYTES,
    Words,
    agreed_key,
    mask,
    public_of,
    seal,
    unseal,
)
from edgec.compiler.private_calibration.session import (
    Advertisement,
    Confirmation,
    Confirmations,
    Roster,
    Session,
    Shares,
    Survivors,
    Unmasking,
)
from edgec.compiler.trust.keys import PublicKey, SigningKey

SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16


class SecureClient:
    """A secure client sends one vector so that the server can read only the sum of all.

    Attributes:
        number: its place in the roster, from 1 on; 0 before it is known.
    """

    def __init__(
        self,
        session: Session,
        vector: Words,
        identity: SigningKey,
        allowed: Collection[PublicKey] | None = None,
    ) -> None:
        """Make the keys.

        Args:
            session: what is summed.
            vector: what this client adds, modulo 2^64.
            identity: signs all that this client sends.
            allowed: the identities that may take part; None lets the server say who does.
        """
        self.number = 0
        self._session, self._vector, self._identity = session, vector, identity
        self._allowed = None if allowed is None else frozenset(allowed)
        self._encryption, self._mask, self._seed = (secrets.token_bytes(KEY_BYTES) for _ in "ems")
        self._roster = Roster(clients=())
        self._neighbours: frozenset[int] = frozenset()
        self._held: dict[int, bytes] = {}
        self._survivors = Survivors(numbers=())

    def sign(self, stage: str, body: bytes) -> str:
        """Return the signature of what is sent in a stage, hexadecimal."""
        return self._identity.sign(self._session.signed(stage, body)).hex()

    def advertise(self) -> Advertisement:
        """Return the public keys."""
        keys = [public_of(secret).hex() for secret in (self._encryption, self._mask)]
        signature = self.sign("advertise", bytes.fromhex("".join(keys)))
        return Advertisement(
            identity=str(self._identity.public),
            encryption_key=keys[0],
            mask_key=keys[1],
            signature=signature,
        )

    def shares(self, roster: Roster) -> Shares:
        """Return sealed shares of this client's secrets for its neighbours.

        Raises:
            TrustError: the roster has too few clients, a client twice, one that may not take part
                or did not sign, or not this one.
        """
        self._check(roster)
        self._roster = roster
        self._neighbours = roster.neighbours(self.number)
        threshold = roster.share_threshold(self._session)
        points = [*self._neighbours, self.number]
        keys = shamir.split(int.from_bytes(self._mask), threshold, points)
        seeds = shamir.split(int.from_bytes(self._seed), threshold, points)
        plain = {
            n: b"".join(s[n].to_bytes(shamir.SHARE_BYTES) for s in (keys, seeds)) for n in points
        }
        self._held = {self.number: plain[self.number]}
        return Shares(
            sealed={
                n: seal(self._key(n, outwards=True), plain[n], self._session.digest).hex()
                for n in self._neighbours
            }
        )

    def masked(self, shares: Shares) -> bytes:
        """Return the masked vector, words of 64 bits, the lowest byte first.

        Raises:
            TrustError: shares were changed, are not from neighbours, or too few remain.
        """
        for number, sealed in shares.sealed.items():
            plain = None
            if number in self._neighbours:
                key = self._key(number, outwards=False)
                plain = unseal(key, bytes.fromhex(sealed), self._session.digest)
            if plain is None:
                raise TrustError(
                    f"the share of client {number} was changed on its way; this client stops"
                )
            self._held[number] = plain
        needed = self._roster.share_threshold(self._session)
        if len(self._held) < needed:
            raise TrustError(f"{len(self._held)} clients share secrets, at least {needed} must")
        total = self._vector + mask(self._seed, b"own", len(self._vector))
        for number in self._held:
            if number != self.number:
                public = bytes.fromhex(self._roster.clients[number - 1].mask_key)
                pair = pair_mask(self._mask, public, self._session, len(self._vector))
                total = total + pair if self.number < number else total - pair
        return total.astype("<u8").tobytes()

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Return the signature of who is summed.

        Raises:
            TrustError: too few are, this client is not, or numbers are wrong.
        """
        numbers = survivors.numbers
        known = set(range(1, len(self._roster.clients) + 1))
        if list(numbers) != sorted(set(numbers) & known) or self.number not in numbers:
            raise TrustError("the list of clients that are summed is wrong; this client stops")
        if len(numbers) < self._session.threshold:
            raise TrustError(
                f"{len(numbers)} clients remain, at least {self._session.threshold} must: nothing "
                "is unmasked"
            )
        self._survivors = survivors
        return Confirmation(signature=self.sign("survivors", survivors.signed(self._roster)))

    def unmask(self, confirmations: Confirmations) -> Unmasking:
        """Return the shares that take the masks off the sum.

        Raises:
            TrustError: too few clients saw the same list of survivors.
        """
        signed = self._session.signed("survivors", self._survivors.signed(self._roster))
        signatures = confirmations.signatures
        for number, signature in signatures.items():
            known = number in self._survivors.numbers
            if not known or not self._signed_by(number, signature, signed):
                raise TrustError(f"client {number} was told of other survivors; this client stops")
        if len(signatures) < self._session.threshold:
            raise TrustError(
                f"{len(signatures)} clients confirm who is summed, at least "
                f"{self._session.threshold} must"
            )
        half = shamir.SHARE_BYTES
        alive = set(self._survivors.numbers)
        return Unmasking(
            keys={n: held[:half].hex() for n, held in self._held.items() if n not in alive},
            seeds={n: held[half:].hex() for n, held in self._held.items() if n in alive},
        )

    def _check(self, roster: Roster) -> None:
        session, identities = self._session, [client.identity for client in roster.clients]
        if not session.threshold <= len(identities) <= session.clients:
            raise TrustError(
                f"{len(identities)} clients take part, {session.threshold} to {session.clients} "
                "are expected"
            )
        keys = [k for c in roster.clients for k in (c.encryption_key, c.mask_key, c.identity)]
        if len(set(keys)) < len(keys):
            raise TrustError("a client is in the list twice; this client stops")
        if self.advertise() not in roster.clients:
            raise TrustError("the server's list of clients has not this one; it stops")
        self.number = 1 + roster.clients.index(self.advertise())
        for number, client in enumerate(roster.clients, 1):
            check_advertisement(session, client, self._allowed, f"client {number}")

    def _signed_by(self, number: int, signature: str, message: bytes) -> bool:
        identity = PublicKey.parse(self._roster.clients[number - 1].identity)
        return identity.verifies(bytes.fromhex(signature), message)

    def _key(self, other: int, *, outwards: bool) -> bytes:
        """Return the key that seals shares for a client, or from it."""
        ends = (self.number, other) if outwards else (other, self.number)
        purpose = b"shares %d to %d " % ends + self._session.digest
        public = bytes.fromhex(self._roster.clients[other - 1].encryption_key)
        return _agreed(self._encryption, public, purpose)


def check_advertisement(
    session: Session, client: Advertisement, allowed: Collection[PublicKey] | None, who: str
) -> None:
    """Make sure that a client may take part, and that its keys are its own.

    Raises:
        TrustError: it may not, or they are not.
    """
    try:
        identity = PublicKey.parse(client.identity)
    except KeyFileError as error:
        raise TrustError(f"{who}: {error}") from None
    if allowed is not None and identity not in allowed:
        raise TrustError(f"{who}, {identity}, is not on the list of those who may take part")
    if not identity.verifies(
        bytes.fromhex(client.signature), session.signed("advertise", client.signed)
    ):
        raise TrustError(f"{who}, {identity}, did not sign its keys")


def pair_mask(secret: bytes, public: bytes, session: Session, length: int) -> Words:
    """Return the mask that two clients share: one adds it, the other subtracts it."""
    return mask(_agreed(secret, public, b"mask " + session.digest), b"pair", length)


def _agreed(secret: bytes, public: bytes, purpose: bytes) -> bytes:
    try:
        return agreed_key(secret, public, purpose)
    except ValueError:
        raise TrustError("a client's key is no point of the curve; nothing is sent") from None
