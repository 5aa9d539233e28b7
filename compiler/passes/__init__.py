"""Provide passes over the Relax graph, in the order in which they run."""

from edgec.compiler.passes.base import Pass
from edgec.compiler.passes.conv_transpose_as_conv import ConvTransposeAsConv
from edgec.compiler.passes.conv_transpose_by_phases import ConvTransposeByPhases
from edgec.compiler.passes.fold_affine import FoldAffine
from edgec.compiler.passes.fold_batch_norm import FoldBatchNorm
from edgec.compiler.passes.legalize_exposed_quantize import LegalizeExposedQuantize
from edgec.compiler.passes.normalize_quantized_constants import NormalizeQuantizedConstants
from edgec.compiler.passes.quantize_before_concat import QuantizeBeforeConcat
from edgec.compiler.passes.recognize_activations import RecognizeActivations
from edgec.compiler.passes.recognize_layer_norm import RecognizeLayerNorm
from edgec.compiler.passes.remove_redundant_layout_ops import RemoveRedundantLayoutOps
from edgec.compiler.passes.volumes_as_images import VolumesAsImages

# Batch normalizations become affine, affines go into weights; what is left between the linear
# operators is then spelled plainly enough to be recognized.
CANONICALIZE: tuple[Pass, ...] = (
    LegalizeExposedQuantize(),
    NormalizeQuantizedConstants(),
    QuantizeBeforeConcat(),
    RemoveRedundantLayoutOps(),
    FoldBatchNorm(),
    RecognizeLayerNorm(),
    FoldAffine(),
    RecognizeActivations(),
    ConvTransposeAsConv(),
    ConvTransposeByPhases(),
    VolumesAsImages(),
    RemoveRedundantLayoutOps(),
    # A constant behind a recognized activation meets the one that came out of it.
    FoldAffine(),
)

__all__ = [
    "CANONICALIZE",
    "ConvTransposeAsConv",
    "ConvTransposeByPhases",
    "FoldAffine",
    "FoldBatchNorm",
    "LegalizeExposedQuantize",
    "NormalizeQuantizedConstants",
    "Pass",
    "QuantizeBeforeConcat",
    "RecognizeActivations",
    "RecognizeLayerNorm",
    "RemoveRedundantLayoutOps",
    "VolumesAsImages",
]
