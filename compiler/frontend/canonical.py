"""Provide the front half of every way through the compiler.

From an ONNX file to a canonical module.

Compiling, tuning, training and the tests begin here.
"""

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray
from tvm import IRModule

from edgec.compiler.frontend.embed_preprocessing import embed_preprocessing
from edgec.compiler.frontend.import_graph import ImportedModel, import_model
from edgec.compiler.frontend.limits import DEFAULT_LIMITS, Limits
from edgec.compiler.frontend.model_source import read_model
from edgec.compiler.frontend.onnx_file import SourceModel
from edgec.compiler.frontend.preprocessing import EmbeddedPreprocessing, ImageInput
from edgec.compiler.frontend.simplify import simplify
from edgec.compiler.frontend.specialize import Shape, specialize
from edgec.compiler.ir.signature import Signature
from edgec.compiler.passes import CANONICALIZE
from edgec.compiler.passes.base import apply_passes
from edgec.compiler.support.phases import Show, untold


@dataclass(frozen=True)
class CanonicalModel:
    """A canonical model is as the passes of compression, quantization and lowering expect it.

    Attributes:
        frozen: what the frozen inputs became, in the dtype and shape of the original input.
        graph: the simplified ONNX model.
        imported: the same as Relax, before any pass.
        module: the canonical module.
        embedded: what the model does with images before the original begins, if anything.
    """

    frozen: Mapping[str, NDArray[Any]]
    graph: onnx.ModelProto
    imported: ImportedModel
    module: IRModule
    embedded: EmbeddedPreprocessing | None = None

    @property
    def signature(self) -> Signature:
        """Return the inputs and outputs."""
        return self.imported.signature

    @property
    def value_names(self) -> dict[str, str]:
        """Return ONNX names by the names of Relax variables."""
        return self.imported.value_names

    def with_module(self, module: IRModule) -> "CanonicalModel":
        """Return the model with another module of the same meaning; the imported is it, too."""
        return replace(self, module=module, imported=replace(self.imported, module=module))

    def without_origin(self) -> "CanonicalModel":
        """Return the model with an empty ONNX graph, and the module in place of the imported one.

        Both hold all weights once more; they serve to say where a float model is off, no other.
        """
        return replace(self.with_module(self.module), graph=onnx.ModelProto())


class Phase(Protocol):
    """Opens a phase by its name; what it gives is handed what the phase made."""

    def __call__(self, name: str) -> AbstractContextManager[Show]:
        """Begin the phase; it ends with the context."""
        ...


def canonical_model(
    model: SourceModel | onnx.ModelProto | str | Path,
    shapes: Mapping[str, Shape] = MappingProxyType({}),
    freeze: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    limits: Limits = DEFAULT_LIMITS,
    phase: Phase = untold,
    images: ImageInput | None = None,
) -> CanonicalModel:
    """Fix the shapes of a model, fold its constants, import it and canonicalize it.

    Args:
        model: the model, or its file.
        shapes: full shape by input name, for inputs that the model leaves open.
        freeze: value by input name; the input becomes a constant.
        limits: the limits of what the model may ask for.
        phase: notified of each phase; by default nothing is.
        images: what becomes part of the model before all else; None leaves it as it is.

    Raises:
        EdgecError: the file is wrong, a shape is open, or an operator is not supported.
    """
    if isinstance(model, str | Path):
        model = read_model(Path(model), limits)
    proto = model.proto if isinstance(model, SourceModel) else model
    with phase("specialize") as show:
        special = specialize(proto, shapes, freeze)
        embedded = None
        if images is not None:
            proto, embedded = embed_preprocessing(special.proto, images)
            special = replace(special, proto=proto)
        show(special)
    with phase("simplify") as show:
        frozen, specialized = special.frozen, special.proto
        # A copy of all weights each; what rewrites graphs leaves rings that hold them.
        del special, proto
        graph = show(simplify(specialized, limits))
        del specialized
        gc.collect()
    with phase("import") as show:
        imported = show(import_model(graph))
    with phase("canonicalize") as show:
        module = show(apply_passes(imported.module, CANONICALIZE))
    return CanonicalModel(frozen, graph, imported, module, embedded)
