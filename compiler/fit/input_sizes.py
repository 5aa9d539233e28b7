"""Offer a search smaller images than those that a model was asked for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from edgec.compiler.options import CompileOptions

# Of the height and the width; what is left is a multiple of what networks divide images by.
SHARES = (0.75, 0.5)
MULTIPLE = 32


def with_smaller_images(model: Path, base: CompileOptions) -> CompileOptions:
    """Return options with a program for each smaller size, where model and samples have any size.

    Args:
        model: the ONNX file.
        base: options of one program; of several, and where images do not come from a folder, or
            the file itself says how large they are, nothing changes.
    """
    source = base.samples.source
    if base.programs or base.variants or not isinstance(source, str) or not Path(source).is_dir():
        return base
    whole = {
        name: base.shapes[name]
        for name in _open_images(model)
        if len(base.shapes.get(name, ())) == 4
    }
    if len(whole) != 1:
        return base
    ((name, shape),) = whole.items()
    sizes = dict.fromkeys([shape, *(_smaller(shape, share) for share in SHARES)])
    if len(sizes) == 1:
        return base
    programs: Mapping[str, Mapping[str, tuple[int, ...]]] = {
        "x".join(map(str, size[2:])): {name: size} for size in sizes
    }
    return replace(base, programs=programs)


def _smaller(shape: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Return an image of a share of the extents; the image itself where it is small.

    >>> _smaller((1, 3, 224, 224), 0.75), _smaller((1, 1, 28, 28), 0.5)
    ((1, 3, 160, 160), (1, 1, 28, 28))
    """
    extents = [int(extent * share) // MULTIPLE * MULTIPLE for extent in shape[2:]]
    return (*shape[:2], *extents) if all(extents) else shape


def _open_images(model: Path) -> list[str]:
    """Return the inputs whose height and width the file leaves open."""
    graph = onnx.load(model, load_external_data=False).graph
    found = []
    for value in graph.input:
        extents = value.type.tensor_type.shape.dim
        if len(extents) == 4 and not any(extent.HasField("dim_value") for extent in extents[2:]):
            found.append(value.name)
    return found
