"""Clients over HTTP: the sum, a client that leaves, and answers to what is wrong."""

import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from support.secure_sums import new_key, new_session

from edgec.compiler.errors import BadInputError, CalibrationError, EdgecError, TrustError
from edgec.compiler.private_calibration.join import Connection, check_privacy, join_session
from edgec.compiler.private_calibration.masks import words
from edgec.compiler.private_calibration.model_values import ClientModel
from edgec.compiler.private_calibration.server import Rounds, collect_sum
from edgec.compiler.private_calibration.session import Noise
from edgec.compiler.private_calibration.statistics import vector_length
from edgec.compiler.serve.server import ServeOptions


class _Server:
    """A server in a thread of its own; joined, it has a sum or an error."""

    def __init__(self, session):
        self.sum, self.error, self.urls = None, None, []
        self.listening = threading.Event()

        def listening(url):
            self.urls.append(url)
            self.listening.set()

        def run():
            try:
                self.sum = collect_sum(Rounds(session), ServeOptions(port=0), listening)
            except EdgecError as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert self.listening.wait(20)
        self.connection = Connection(self.urls[0])


class _LeftError(Exception):
    pass


def _all_join(server, session, vectors, leaving):
    errors = []

    def client(index):
        def reached(stage):
            if leaving.get(index) == stage:
                raise _LeftError

        try:
            join_session(server.connection, session, vectors[index], new_key(), reached=reached)
        except (_LeftError, EdgecError) as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(vectors))]
    for thread in threads:
        thread.start()
    for thread in (*threads, server.thread):
        thread.join(60)
    return errors


def test_the_sum_of_those_who_stay_is_exact():
    session = new_session(4, 3).model_copy(update={"wait_seconds": 2.0})
    generator = np.random.default_rng(0)
    vectors = [words(generator.integers(0, 99, vector_length(session))) for _ in range(4)]
    server = _Server(session)
    for path, body, status in (
        ("advertise", b"{", 400),
        ("masked?client=1", b"", 410),
        ("advertise?client=x", b"", 400),
        ("nothing", b"", 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{server.urls[0]}/{path}", body)
        with error.value:
            assert error.value.code == status
    assert server.connection.session() == session
    errors = _all_join(server, session, vectors, {2: "masked"})
    assert [type(error) for error in errors] == [_LeftError]
    total, summed = server.sum
    assert summed == 3
    assert np.array_equal(total, vectors[0] + vectors[1] + vectors[3])


def test_too_few_clients_end_it_for_everybody():
    session = new_session(3, 2).model_copy(update={"wait_seconds": 0.5})
    server = _Server(session)
    vector = words(np.zeros(vector_length(session), np.int64))
    (error,) = _all_join(server, session, [vector], {})
    assert isinstance(server.error, CalibrationError)
    assert "1 of 3 clients came through stage advertise, at least 2 must" in str(server.error)
    assert isinstance(error, BadInputError)
    assert "nothing is unmasked" in str(error)


def test_a_client_decides_about_model_and_noise(tmp_path):
    session = new_session(3, 2)
    with pytest.raises(TrustError, match="no noise"):
        check_privacy(session, 2.0)
    noise = Noise(epsilon=1, delta=1e-5, added_by="server", low_log2=-6, high_log2=6)
    with pytest.raises(TrustError, match="by the server"):
        check_privacy(session.model_copy(update={"noise": noise}), 2.0)
    own = noise.model_copy(update={"added_by": "clients"})
    check_privacy(session.model_copy(update={"noise": own}), 2.0)
    from edgec.models import load_model_recipe

    load_model_recipe("digits").write(tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="the session is about 000000000000"):
        ClientModel(tmp_path / "m.onnx", session)
