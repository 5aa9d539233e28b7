"""Open cascades, and plans with exits, whose second part a server has or this machine."""

from collections.abc import Mapping
from pathlib import Path

from edgec.compiler.bundle.bundle import Bundle
from edgec.compiler.cascade.cascade import LARGE, is_cascade
from edgec.compiler.cascade.session import Ask, CascadeSession, Outputs
from edgec.compiler.distribute.connection import LinkError
from edgec.compiler.distribute.edge_session import open_edge
from edgec.compiler.distribute.http_stage import HttpStage, is_http
from edgec.compiler.errors import UsageError
from edgec.compiler.ir.signature import Tensors
from edgec.compiler.split.plan import Plan

_LARGE_NAME = LARGE.removesuffix(".edgec")
# A server may be silent for so long.
TIMEOUT_SECONDS = 5.0


def open_cascade(
    folder: str | Path,
    devices: Mapping[str, str] | None = None,
    *,
    key_file: Path | None = None,
    threads: int = 0,
) -> CascadeSession:
    """Open a cascade whose large model is here, or on a server; or a plan with exits likewise.

    Args:
        folder: what `edgec cascade` wrote, or `edgec compile --exits … --devices …`.
        devices: where the model `large` is served, or the second device of the plan, by `http://`
            or `https://`; else it is here.
        key_file: holds what the server wants as `Authorization: Bearer`; None: nothing.
        threads: that each model here computes on.

    Raises:
        UsageError: another part is to be elsewhere, or the address is of no server.
        BundleError: there is neither, or a bundle of it is for another machine.
    """
    folder, devices = Path(folder), devices or {}
    plan = None if is_cascade(folder) else Plan.load(folder)
    second = None if plan is None else plan.programs[0].stages[-1]
    name = _LARGE_NAME if second is None else second.device
    for given, address in devices.items():
        if given != name or not is_http(address):
            raise UsageError(
                f"--device {given}={address}: the first part is here, and the other one may be on "
                f"a server: write {name}=https://HOST:PORT"
            )

    def opened(ask: Ask | None) -> CascadeSession:
        if plan is None:
            return CascadeSession.open(folder, ask, threads)
        return open_edge(folder, ask, threads)

    if name not in devices:
        return opened(None)
    bundle = Bundle.load(folder / (LARGE if second is None else second.bundle))
    stage = HttpStage(devices[name], bundle, TIMEOUT_SECONDS, key_file)

    def ask(inputs: Tensors) -> Outputs | None:
        try:
            return stage.run(inputs)
        except LinkError:
            return None

    session = opened(ask)
    session.on_close = stage.close
    return session
