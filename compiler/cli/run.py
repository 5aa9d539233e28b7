"""Provide `edgec run`: a bundle, once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.cli.options import (
    as_path,
    board_option,
    inputs_option,
    json_option,
    program_option,
    read_inputs,
)
from edgec.compiler.cli.printing import plain, print_json, print_table

if TYPE_CHECKING:
    from numpy.typing import NDArray


@click.command()
@click.argument("bundle", type=as_path)
@inputs_option
@program_option
@click.option("--pad", is_flag=True, help="Fill inputs that fit no program up with zeros.")
@click.option("--seed", default=0, show_default=True, help="Of the generated inputs.")
@click.option("--threads", type=int, default=0, show_default=True, help="0: all cores.")
@click.option("--output", "-o", type=as_path, metavar="FILE.npz", help="Save the outputs.")
@board_option
@json_option
def run(
    bundle: Path,
    *,
    inputs: Sequence[str],
    program: str | None,
    pad: bool,
    seed: int,
    threads: int,
    output: Path | None,
    board: str | None,
    as_json: bool,
) -> None:
    """Run a BUNDLE here or on a board, on given or generated inputs."""
    from edgec.compiler.boards.run import run_bundle
    from edgec.compiler.runtime.inputs import write_tensors
    from edgec.compiler.support.files import check_output_file

    if output is not None:
        check_output_file(output, make_folders=True)
    results = run_bundle(
        bundle,
        read_inputs(inputs),
        board=board,
        seed=seed,
        threads=threads,
        program=program,
        pad=pad,
    )
    if output is not None:
        write_tensors(output, results)
    if as_json:
        summary = [{"name": name, **_describe(array)} for name, array in results.items()]
        print_json({"bundle": str(bundle), "outputs": summary})
        return
    print_table(
        ["output", "shape", "dtype", "min", "max", "mean"],
        [[name, *map(plain, _describe(array).values())] for name, array in results.items()],
    )


def _describe(array: "NDArray[Any]") -> dict[str, Any]:
    """Return shape, dtype and the range of values."""
    values = array.astype("float64")
    statistics = (values.min(), values.max(), values.mean()) if array.size else (None,) * 3
    numbers = dict(zip(("min", "max", "mean"), statistics, strict=True))
    return {"shape": list(array.shape), "dtype": str(array.dtype), **numbers}
