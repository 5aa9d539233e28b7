"""Ask the large model of a cascade over the Open Inference Protocol."""

from collections.abc import Mapping
from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.cascade import LARGE
from edgec.compiler.cascade.session import CascadeSession, Outputs
from edgec.compiler.distribute.connection import LinkError
from edgec.compiler.distribute.http_stage import HttpStage, is_http
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors

_NAME = LARGE.removesuffix(".edgec")
# A server may be silent for so long.
TIMEOUT_SECONDS = 5.0


def open_cascade(
    folder: str | Path,
    devices: Mapping[str, str] | None = None,
    *,
    key_file: Path | None = None,
    threads: int = 0,
) -> CascadeSession:
    """Open a cascade whose large model is here, or on a server.

    Args:
        folder: what `edgec cascade` wrote.
        devices: where the model `large` is served, by `http://` or `https://`; else it is here.
        key_file: holds what the server wants as `Authorization: Bearer`; None: nothing.
        threads: that each model here computes on.

    Raises:
        UsageError: another model is to be elsewhere, or the address is of no server.
        BundleError: there is no cascade, or a bundle of it is for another machine.
    """
    devices = devices or {}
    for name, address in devices.items():
        if name != _NAME or not is_http(address):
            raise UsageError(
                f"--device {name}={address}: of a cascade the large model may be elsewhere; write "
                f"{_NAME}=https://HOST:PORT"
            )
    if _NAME not in devices:
        return CascadeSession.open(folder, threads=threads)
    bundle = Bundle.load(Path(folder) / LARGE)
    stage = HttpStage(devices[_NAME], bundle, TIMEOUT_SECONDS, key_file)

    def ask(inputs: Tensors) -> Outputs | None:
        try:
            return stage.run(inputs)
        except LinkError:
            return None

    session = CascadeSession.open(folder, ask, threads)
    session.on_close = stage.close
    return session
