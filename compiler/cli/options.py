"""Provide options that verbs share, and how their texts become settings.

Only what needs no TVM is imported at the top, so that help is immediate.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.compiler.compress.names import STEP_NAMES
from edgec.compiler.errors import UsageError
from edgec.compiler.numerics.observers import OBSERVERS
from edgec.compiler.quantize.options import ROUNDINGS
from edgec.compiler.quantize.quantization_recipe import RECIPES

if TYPE_CHECKING:
    from edgec.compiler.support.progress import Progress


def as_path(text: str) -> Path:
    """Return a path; what is wrong with it is said by the call that gets it."""
    return Path(text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress.")
board_option = click.option("--board", metavar="NAME", help="Do it there instead of here.")
target_option = click.option(
    "--target", "-t", default="native", show_default=True, help="Name or *.toml."
)
cluster_option = click.option(
    "--cluster", default="", metavar="tcp://|tls://…", help="Work there: a Dask scheduler."
)
workers_option = click.option(
    "--workers", type=int, metavar="N", help="Processes.  [default: one for each core]"
)
program_option = click.option(
    "--program", metavar="NAME", help="Of a bundle of several, whose inputs are generated."
)
inputs_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=FILE.npy|FILE.npz",
    help="Input tensors; generated ones otherwise.",
)


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return shapes and values of a model's inputs; `model_options` reads them."""
    shape = click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=1,3,224,224",
        help="Full shape of an input that the model leaves open; 'NAME=1,3,48,{160,320}' (quoted) "
        "for several programs.",
    )
    freeze = click.option(
        "--freeze",
        multiple=True,
        metavar="NAME=VALUE",
        help="Make an input a constant, a number, a list or FILE.npy; it leaves the interface.",
    )
    limit = click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="value=1G|file=4G|nodes=500000",
        help="Let a model ask for larger values, more data or more nodes.  "
        "[default: value=640M, file=2G, nodes=200000]",
    )
    context = click.option(
        "--context",
        type=int,
        metavar="N",
        help="Tokens that a language model's cache holds.  [default: the model's, at most 4096]",
    )
    return shape(freeze(limit(context(command))))


def model_options(
    shapes: Sequence[str], freeze: Sequence[str], limits: Sequence[str], context: int | None
) -> dict[str, Any]:
    """Return fields of `CompileOptions` from the options of `shape_options`."""
    from edgec.compiler.frontend.limits import parse_limits
    from edgec.compiler.options import parse_shapes, parse_value

    common, programs = parse_shapes(shapes)
    return {
        "shapes": common,
        "programs": programs,
        "freeze": _unique("--freeze", [parse_value(text) for text in freeze]),
        "limits": parse_limits(limits),
        "context": context,
    }


def _unique(option: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UsageError(f"{option} is given twice for the same input")
    return values


def read_inputs(inputs: Sequence[str]) -> dict[str, Any] | None:
    """Return input tensors from `NAME=file.npy` or `file.npz`; None if there are none."""
    from edgec.compiler.runtime.inputs import read_tensors

    return read_tensors(inputs) if inputs else None


def progress_of(quiet: bool, verbose: bool = False) -> "Progress":
    """Return what shows the steps of a call on standard error."""
    from edgec.compiler.support.progress import Silent, Steps

    return Silent() if quiet else Steps(verbose)


# What samples there are, and how answers are judged.
_SAMPLES = (
    click.option(
        "--calibration", metavar="DATA", help=".npy, .npz, .txt, a folder, or module:function."
    ),
    click.option(
        "--preprocess",
        metavar="KEY=VALUE,…",
        help="Of images: resize=stretch|crop|pad, mean=, std=, scale=, color=, layout=.",
    ),
    click.option(
        "--embed-preprocess",
        is_flag=True,
        help="Make --preprocess part of the model: it takes uint8 images [N, H, W, C].",
    ),
    click.option(
        "--image-size",
        metavar="HEIGHTxWIDTH",
        help="Of the images that an embedded preprocessing resizes.",
    ),
    click.option("--calibration-limit", type=int, metavar="N", help="Batches, at most 300."),
    click.option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="Instead of the share of equal largest classes.",
    ),
)
_CHANGES = (
    click.option(
        "--compress",
        metavar="RECIPE",
        help=f"{', '.join(STEP_NAMES)} (N in percent), joined by commas; or *.toml.",
    ),
    click.option(
        "--checkpoint", type=as_path, metavar="FILE.npz", help="Keep the training of distill."
    ),
    click.option(
        "--quantize",
        metavar="RECIPE",
        help=f"{', '.join(RECIPES)}; or *.toml.",
    ),
    *_SAMPLES,
    click.option("--observer", type=click.Choice(OBSERVERS), help="Finds ranges.  [default: mse]"),
    click.option(
        "--calibration-cache", type=as_path, metavar="FILE.json", help="Keep the ranges there."
    ),
    click.option(
        "--ranges", type=as_path, metavar="FILE.json", help="Of edgec calibrate serve: no samples."
    ),
    click.option("--no-repair", is_flag=True, help="Round to the nearest, biases as they are."),
    click.option(
        "--rounding", type=click.Choice(ROUNDINGS), help="Of weights.  [default: second-order]"
    ),
    click.option("--max-drop", type=float, metavar="SHARE", help="0.01: one answer in 100."),
    click.option("--min-sqnr", type=float, metavar="DB", help="Of the worst output."),
    click.option(
        "--exits", metavar="0.3,0.6", help="Ends early at these depths, where an answer is sure."
    ),
    click.option("--exit-drop", type=float, metavar="SHARE", help="0.01: one answer in 100."),
)
_CHANGE_REPORTS = (
    click.option(
        "--compress-report",
        type=as_path,
        metavar="FILE.html|.json",
        help="What each step gained and cost.",
    ),
    click.option(
        "--report", type=as_path, metavar="FILE.html|.json", help="What each operator costs."
    ),
)


def change_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return what changes a model's numbers; `changes` reads it."""
    return _with_options(command, _CHANGES)


def sample_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return what samples there are; `sample_settings` reads it."""
    return _with_options(command, _SAMPLES)


def change_report_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return reports on what changed a model's numbers; `changes` reads them, too."""
    return _with_options(command, _CHANGE_REPORTS)


def _with_options(
    command: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


_SAMPLE_FIELDS = {
    "calibration": "source",
    "preprocess": "preprocess",
    "calibration_limit": "limit",
    "metric": "metric",
}
_COMPRESS_FIELDS = {"compress_report": "report", "checkpoint": "checkpoint"}
_QUANTIZE_FIELDS = {
    "observer": "observer",
    "calibration_cache": "cache",
    "ranges": "ranges",
    "no_repair": "repair",
    "rounding": "rounding",
    "max_drop": "max_drop",
    "min_sqnr": "min_sqnr_db",
    "report": "report",
}


def _fields(settings: Mapping[str, Any], names: Mapping[str, str], owner: str) -> dict[str, Any]:
    """Return what is given of some options, under the names of their fields.

    Args:
        settings: all options.
        names: the names of the fields, by option.
        owner: option that they need; empty if it is given.
    """
    given = {name: settings[name] for name in names if settings.get(name) not in (None, False)}
    if given and owner:
        name = next(iter(given)).replace("_", "-")
        raise UsageError(f"--{name} belongs to {owner}, which is not given")
    return {names[name]: value for name, value in given.items()}


def changes(
    compress: str | None,
    quantize: str | None,
    settings: Mapping[str, Any],
    varied: bool = False,
) -> dict[str, Any]:
    """Return the options of a compile that changes the model's numbers."""
    from edgec.compiler.compress.compression_recipe import load_compression
    from edgec.compiler.compress.options import CompressOptions
    from edgec.compiler.quantize.options import QuantizeOptions
    from edgec.compiler.quantize.quantization_recipe import load_recipe

    to_compress = "" if compress else "--compress RECIPE"
    to_quantize = "" if quantize else "--quantize RECIPE"
    exits = settings.get("exits")
    needed = not varied and exits is None and to_compress and to_quantize
    neither = needed and f"{to_quantize}, {to_compress} or --exits"
    options = sample_settings(settings, neither or "")
    compression = _fields(settings, _COMPRESS_FIELDS, to_compress)
    quantization = _fields(settings, _QUANTIZE_FIELDS, to_quantize)
    if "repair" in quantization:
        if "rounding" in quantization:
            raise UsageError("--rounding and --no-repair contradict each other")
        quantization["repair"] = False
    if "ranges" in quantization and "observer" in quantization:
        raise UsageError(
            "--ranges and --observer contradict each other: edgec calibrate serve chose the "
            "observer of these ranges"
        )
    if exits is not None:
        from edgec.compiler.exits.options import parse_exits

        options["exits"] = parse_exits(exits, settings.get("exit_drop"))
    elif settings.get("exit_drop") is not None:
        raise UsageError("--exit-drop belongs to --exits, which is not given")
    if compress:
        options["compress"] = CompressOptions(recipe=load_compression(compress), **compression)
    if quantize:
        options["quantize"] = QuantizeOptions(recipe=load_recipe(quantize), **quantization)
    return options


def sample_settings(settings: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
    """Return samples and embedded preprocessing.

    Args:
        settings: all options.
        owner: an option that samples need; empty if it is given, or they serve by themselves.
    """
    from edgec.compiler.calibration.samples import SampleOptions
    from edgec.compiler.frontend.preprocessing import ImageInput, parse_preprocess, parse_size

    images = None
    if settings["embed_preprocess"]:
        size = settings["image_size"]
        images = ImageInput(
            preprocess=parse_preprocess(settings["preprocess"] or ""),
            size=None if size is None else parse_size(size),
        )
        # Samples are the images themselves then.
        settings = {**settings, "preprocess": None}
    elif settings["image_size"] is not None:
        raise UsageError("--image-size belongs to --embed-preprocess, which is not given")
    samples = _fields(settings, _SAMPLE_FIELDS, owner)
    if "preprocess" in samples:
        samples["preprocess"] = parse_preprocess(samples["preprocess"])
    return {"samples": SampleOptions(**samples), "images": images}
