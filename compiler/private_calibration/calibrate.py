"""Calibrate a model over clients: the whole of the server's work, and of a client's."""

import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from edgec.compiler.calibration.ranges_file import RangesFile
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.errors import UsageError
from edgec.compiler.frontend.onnx_file import external_files, read_onnx
from edgec.compiler.numerics.observers import ObserverName
from edgec.compiler.private_calibration.join import Connection, check_privacy, join_session
from edgec.compiler.private_calibration.model_values import ClientModel, wanted_values
from edgec.compiler.private_calibration.result import make_ranges_file
from edgec.compiler.private_calibration.server import Rounds, collect_sum
from edgec.compiler.private_calibration.session import Session, describe_wrong
from edgec.compiler.quantize.quantization_recipe import QuantizationRecipe
from edgec.compiler.serve.server import ServeOptions
from edgec.compiler.support.files import check_output_file, scratch_folder, write_atomically
from edgec.compiler.support.progress import Progress
from edgec.compiler.trust.keys import PublicKey, SigningKey
from edgec.targets import Target


def make_session(
    model: Path,
    recipe: QuantizationRecipe,
    target: Target,
    *,
    clients: int,
    threshold: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    wait_seconds: float = 300.0,
    noise: Mapping[str, Any] | None = None,
) -> Session:
    """Return a new session about what a recipe needs of a model.

    Args:
        model: the ONNX file.
        recipe: the recipe that the ranges are for.
        target: the target that they are for.
        clients: how many take part.
        threshold: how many must remain; by default more than two thirds, with which a server that
            lies, helped by fewer than a third of the clients, gets no vector either (Bonawitz et
            al. 2017).
        shapes: full shape by input name, for inputs that the model leaves open.
        wait_seconds: for each stage.
        noise: fields of a `Noise`.

    Raises:
        UsageError: a number cannot be.
        EdgecError: the model cannot be compiled.
    """
    source = read_onnx(model)
    threshold = 2 * clients // 3 + 1 if threshold is None else threshold
    values = wanted_values(source, shapes or {}, recipe, target)
    fields = {
        "id": secrets.token_hex(32),
        "model": source.name,
        "model_sha256": source.sha256,
        "shapes": {name: tuple(shape) for name, shape in (shapes or {}).items()},
        "values": values,
        "clients": clients,
        "threshold": threshold,
        "wait_seconds": wait_seconds,
        "noise": noise,
    }
    try:
        session = Session.model_validate(fields)
    except ValidationError as error:
        raise UsageError(describe_wrong(error.errors())) from None
    if session.noise is not None:
        from edgec.compiler.private_calibration.noise import deviation

        # Says before anybody comes if it cannot be.
        deviation(session)
    return session


def calibrate_over_clients(
    session: Session,
    model: Path,
    output: Path,
    options: ServeOptions,
    observer: ObserverName = "mse",
    allowed: Collection[PublicKey] | None = None,
    *,
    listening: Callable[[str], None],
) -> RangesFile:
    """Serve a session until its end and write its ranges.

    Args:
        session: what `make_session` gave.
        model: the ONNX file, which clients may fetch.
        output: the file of ranges.
        options: where to listen.
        observer: chooses ranges of histograms.
        allowed: the identities that may take part; None takes the first that come.
        listening: called with the URL once clients can come.

    Raises:
        CalibrationError: too few clients remained; nothing is written.
        EdgecError: the address or the output is wrong.
    """
    check_output_file(output, make_folders=True)
    rounds = Rounds(session, None if external_files(model) else model, allowed)
    total, summed = collect_sum(rounds, options, listening)
    file = make_ranges_file(session, total, summed, observer)
    write_atomically(output, file.model_dump_json(indent=1) + "\n")
    return file


def take_part(
    connection: Connection,
    data: SampleOptions,
    *,
    model: Path | None = None,
    identity: SigningKey | None = None,
    allowed: Collection[PublicKey] | None = None,
    most_epsilon: float | None = None,
    progress: Progress | None = None,
) -> None:
    """Count a model's values on own data and send the counts masked.

    Args:
        connection: to the server.
        data: the samples.
        model: the ONNX file; None fetches the server's.
        identity: signs what is sent; None makes one for this time.
        allowed: the identities that may take part; None lets the server say who does.
        most_epsilon: the most ε of noise by clients that this client takes part with.
        progress: is told of each batch.

    Raises:
        TrustError: the session or the server is not as this client asks.
        EdgecError: data, model or server are wrong.
    """
    session = connection.session()
    check_privacy(session, most_epsilon)
    identity = identity or SigningKey("once", Ed25519PrivateKey.generate())
    with scratch_folder() as scratch:
        if model is None:
            model = scratch / "model.onnx"
            model.write_bytes(connection.model())
        counted = ClientModel(model, session)
        vector = counted.vector(counted.open(data), progress)
    join_session(connection, session, vector, identity, allowed)
