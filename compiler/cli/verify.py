"""Provide `edgec verify`: a bundle's files, then its results."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.compiler.cli.options import (
    as_path,
    board_option,
    inputs_option,
    json_option,
    read_inputs,
)
from edgec.compiler.cli.plan_runs import is_plan, opened_plan, plan_options, verify_and_print
from edgec.compiler.cli.printing import print_json, print_parity
from edgec.compiler.errors import UsageError

if TYPE_CHECKING:
    from edgec.compiler.bundle.bundle import Bundle


@click.command()
@click.argument("bundle", type=as_path, required=False)
@plan_options
@click.option(
    "--model",
    type=as_path,
    metavar="FILE.onnx",
    help="The original: compare on fresh inputs too.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=(1,), show_default=True)
@inputs_option
@click.option(
    "--expected",
    multiple=True,
    metavar="NAME=FILE.npy|FILE.npz",
    help="What --input must give, if --model does not tell.",
)
@board_option
@json_option
def verify(
    bundle: Path | None,
    *,
    plan: Path | None,
    devices: Sequence[str],
    key: Path | None,
    model: Path | None,
    seeds: tuple[int, ...],
    inputs: Sequence[str],
    expected: Sequence[str],
    board: str | None,
    as_json: bool,
) -> None:
    """Check a BUNDLE's files, then its results against the original graph.

    With --plan check a split model over its devices.
    """
    if is_plan(plan, devices, key, bundle):
        assert plan is not None
        if board is not None or inputs or expected:
            raise UsageError("--plan takes no --board, --input or --expected")
        with opened_plan(plan, devices, key, 1, as_json) as session:
            verify_and_print(session, model, seeds, as_json)
        return
    assert bundle is not None
    from edgec.compiler.boards.run import verify_on
    from edgec.compiler.bundle.bundle import Bundle

    loaded = Bundle.load(bundle)
    report = verify_on(
        board,
        loaded,
        model=model,
        seeds=seeds,
        inputs=read_inputs(inputs),
        expected=read_inputs(expected),
    )
    if as_json:
        outputs = [dataclasses.asdict(output) for output in report.outputs]
        signers = [{"key": signer, "policy": verdict} for signer, verdict in _signers(loaded)]
        print_json(
            {
                "bundle": str(bundle),
                "passed": report.passed,
                "signed_by": signers,
                "outputs": outputs,
            }
        )
    else:
        files = len(loaded.manifest.files) + 1
        click.echo(f"{bundle}: {files} files are what the manifest says")
        for signer, verdict in _signers(loaded):
            click.echo(f"signed by {signer}: {verdict}")
        print_parity(report)
    report.check(f"for {bundle}")


def _signers(bundle: "Bundle") -> list[tuple[str, str]]:
    """Return each key that signed a bundle, and what the policy says of it."""
    from edgec.compiler.trust.policy import load_policy

    if bundle.signature is None:
        return []
    policy = load_policy()
    return [
        (str(key), "this machine has no policy" if policy is None else policy.name_of(key))
        for key in bundle.signature.keys
    ]
