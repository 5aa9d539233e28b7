"""Provide `edgec sign`: a signature for a bundle that is there."""

from pathlib import Path

import click

from edgec.compiler.cli.options import as_path


@click.command()
@click.argument("bundle", type=as_path)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME|FILE.pem",
    help="A signing key; several sign together.",
)
@click.option(
    "--model-signing",
    type=as_path,
    metavar="FILE.pem",
    help="An ECDSA key: write a signature for the package model-signing.",
)
@click.option(
    "--output", "-o", type=as_path, metavar="FILE.sig", help="Where that signature is written."
)
def sign(
    bundle: Path, *, keys: tuple[str, ...], model_signing: Path | None, output: Path | None
) -> None:
    """Sign a BUNDLE; signatures that it has stay."""
    from edgec.compiler.bundle.bundle import Bundle, file_digests, sign_bundle
    from edgec.compiler.errors import UsageError
    from edgec.compiler.support.files import check_output_file, write_atomically
    from edgec.compiler.trust.model_signing import model_signature

    if (model_signing is None) != (output is None):
        raise UsageError("--model-signing FILE.pem and --output FILE.sig go together")
    if not keys and model_signing is None:
        raise UsageError("give --key NAME; edgec keys new NAME makes one")
    if keys:
        signed = sign_bundle(bundle, keys)
        assert signed.signature is not None
        click.echo(f"{bundle}: signed by {signed.signature.signers}")
    if model_signing is not None and output is not None:
        check_output_file(output)
        files = file_digests(Bundle.load(bundle))
        write_atomically(output, model_signature(bundle.name, files, model_signing))
        click.echo(
            f"{output}: for model_signing verify key {bundle} --signature {output} --public_key …"
        )
