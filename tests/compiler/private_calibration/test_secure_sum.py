"""The sum is exact whoever drops out, the server sees nothing else, and lies are refused."""

import json
import math

import numpy as np
import pytest
from support.secure_sums import looks_random, new_key, new_session, secure_sum

from edgec.compiler.errors import CalibrationError, TrustError
from edgec.compiler.private_calibration import session as sessions
from edgec.compiler.private_calibration import shamir
from edgec.compiler.private_calibration.masks import words
from edgec.compiler.private_calibration.secure_client import SecureClient
from edgec.compiler.private_calibration.secure_server import SecureServer
from edgec.compiler.private_calibration.session import Roster, Survivors
from edgec.compiler.serve.request_error import RequestError

LENGTH = 2048


@pytest.fixture(scope="module")
def vectors():
    generator = np.random.default_rng(0)
    return [words(generator.integers(-9, 100, LENGTH)) for _ in range(10)]


@pytest.fixture(scope="module")
def result(vectors):
    drops = {"shares": 1, "masked": 1, "confirm": 1, "unmask": 1}
    return secure_sum(new_session(10, 6), vectors, drops)


def test_the_sum_is_exact_when_clients_drop_out_at_every_stage(vectors, result):
    assert result.summed == list(range(2, 10))
    assert np.array_equal(result.total, sum(vectors[i] for i in result.summed))


def test_the_server_receives_keys_ciphertexts_masked_vectors_and_shares_only(vectors, result):
    fields = {
        "advertise": {"identity", "encryption_key", "mask_key", "signature"},
        "shares": {"sealed"},
        "confirm": {"signature"},
        "unmask": {"seeds", "keys"},
    }
    secrets_of: dict[int, set[str]] = {}
    for stage, _number, body in result.received:
        if stage == "masked":
            assert looks_random(body)
            continue
        message = json.loads(body)
        assert set(message) == fields[stage]
        for kind in ("seeds", "keys") if stage == "unmask" else ():
            for number in message[kind]:
                secrets_of.setdefault(int(number), set()).add(kind)
    # Never both secrets of one client.
    assert secrets_of
    assert all(len(kinds) == 1 for kinds in secrets_of.values())
    # The same inspection finds a vector that nobody masked.
    assert not looks_random(vectors[0].tobytes())


def test_fewer_shares_than_the_threshold_say_nothing():
    shares = shamir.split(7, 3, range(1, 6))
    assert shamir.join({n: shares[n] for n in (1, 3, 5)}) == 7
    assert shamir.join({n: shares[n] for n in (1, 3)}) != 7


def test_a_sparse_graph_gives_the_same_sum(vectors, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_COMPLETE", 4)
    monkeypatch.setattr(sessions, "NEIGHBOURS", 6)
    found = secure_sum(new_session(10, 6), vectors, {"masked": 1})
    assert math.ceil(0.55 * 7) == 4
    assert np.array_equal(found.total, sum(vectors[1:]))


def test_too_few_clients_are_not_unmasked(vectors):
    with pytest.raises(CalibrationError, match=r"5 of 10 clients .* at least 6 must"):
        secure_sum(new_session(10, 6), vectors, {"masked": 5})


def _two(threshold: int = 2):
    session = new_session(3, threshold)
    keys = [new_key() for _ in range(3)]
    clients = [SecureClient(session, words(np.arange(4)), key) for key in keys]
    return session, clients, Roster(clients=tuple(c.advertise() for c in clients)), keys


def test_a_client_refuses_a_server_that_invents_clients():
    session, _clients, _roster, keys = _two()
    careful = SecureClient(session, words(np.arange(4)), keys[0], [k.public for k in keys[:2]])
    invented = SecureClient(session, words(np.arange(4)), new_key())
    roster = Roster(clients=(careful.advertise(), invented.advertise()))
    with pytest.raises(TrustError, match="not on the list"):
        careful.shares(roster)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [((2, 3), "is wrong"), ((1,), "at least 2"), ((1, 1), "is wrong"), ((1, 9), "is wrong")],
)
def test_a_client_refuses_wrong_survivors(numbers, error):
    _session, clients, roster, _keys = _two()
    clients[0].shares(roster)
    with pytest.raises(TrustError, match=error):
        clients[0].confirm(Survivors(numbers=numbers))


def test_a_client_refuses_changed_keys_and_shares():
    _session, clients, roster, _keys = _two()
    first, second = roster.clients[:2]
    swapped = first.model_copy(update={"mask_key": second.mask_key, "identity": "ed25519:00"})
    with pytest.raises(TrustError):
        clients[1].shares(Roster(clients=(swapped, *roster.clients[1:])))
    with pytest.raises(TrustError, match="twice"):
        clients[1].shares(Roster(clients=(first, first, second)))
    sent = [client.shares(roster) for client in clients]
    bad = sent[0].sealed[2][:-2] + ("00" if sent[0].sealed[2][-2:] != "00" else "11")
    with pytest.raises(TrustError, match="was changed"):
        clients[1].masked(sent[0].model_copy(update={"sealed": {1: bad}}))


def test_the_server_refuses_what_is_malformed_unsigned_or_sent_twice():
    session, clients, _roster, _keys = _two()
    server = SecureServer(session, 4)
    body = clients[0].advertise().model_dump_json().encode()
    for wrong, status in ((b"{", 400), (body.replace(b'"mask_key"', b'"x"'), 400)):
        with pytest.raises(RequestError) as error:
            server.receive("advertise", 0, "", wrong)
        assert error.value.status == status
    server.receive("advertise", 0, "", body)
    with pytest.raises(RequestError) as error:
        server.receive("advertise", 0, "", body)
    assert error.value.status == 409
    with pytest.raises(RequestError) as error:
        server.receive("masked", 1, "", bytes(32))
    assert error.value.status == 410
    server.receive("advertise", 0, "", clients[1].advertise().model_dump_json().encode())
    answer = server.close()
    sealed = clients[0].shares(answer(1)).model_dump_json().encode()
    with pytest.raises(RequestError) as error:
        server.receive("shares", 1, "00", sealed)
    assert error.value.status == 403
