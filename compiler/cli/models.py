"""Provide `edgec models`: trained networks to try."""

from pathlib import Path

import click

from edgec.compiler.cli.options import as_path, json_option
from edgec.compiler.cli.printing import print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option(
    "--output", "-o", type=as_path, metavar="FILE", help="Default: NAME.onnx, or NAME.gguf."
)
@json_option
def models(name: str | None, output: Path | None, as_json: bool) -> None:
    """List the model recipes, or fetch the one called NAME into a file."""
    from edgec.compiler.support.files import check_output_file
    from edgec.models import load_model_recipe, recipes

    if name is None:
        rows = recipes()
        if as_json:
            print_json([recipe.describe() for recipe in rows])
        else:
            print_table(
                ["model", "compile with", "licence", "description"],
                [[r.name, r.arguments(), r.licence, r.description] for r in rows],
            )
        return
    recipe = load_model_recipe(name)
    path = output or Path(recipe.file_name)
    # Before a download.
    check_output_file(path)
    recipe.write(path)
    if as_json:
        print_json({**recipe.describe(), "path": str(path)})
    else:
        click.echo(f"{path}: {recipe.description}; licence {recipe.licence}")
        click.echo(f"compile it with: edgec compile {path} {recipe.arguments()}".rstrip())
