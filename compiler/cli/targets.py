"""Provide `edgec targets`: what can be compiled for."""

import click

from edgec.compiler.cli.options import json_option
from edgec.compiler.cli.printing import plain, print_json, print_table


@click.command()
@click.argument("name", required=False)
@json_option
def targets(name: str | None, as_json: bool) -> None:
    """List the named targets, or show one (by NAME or *.toml) with its features."""
    from edgec.targets import load_target, target_names

    if name is not None:
        target = load_target(name)
        fields = target.model_dump(mode="json")
        if as_json:
            print_json(fields)
        else:
            print_table(["", ""], [[key, plain(value)] for key, value in fields.items()])
        return
    known = [load_target(known) for known in target_names()]
    if as_json:
        print_json([target.model_dump(mode="json") for target in known])
        return
    print_table(
        ["target", "cpu", "vector", "int8", "cores", "description"],
        [
            [t.name, t.cpu, f"{t.vector_bits} bit", t.integer_dot, str(t.cores), t.description]
            for t in known
        ],
    )
