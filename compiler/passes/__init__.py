"""Passes over the Relax graph, in the order in which they run."""

from edgec.compiler.passes.base import Pass
from edgec.compiler.passes.conv_transpose_as_conv import ConvTransposeAsConv
from edgec.compiler.passes.fold_affine import FoldAffine
from edgec.compiler.passes.fold_batch_norm import FoldBatchNorm
from edgec.compiler.passes.quantize_before_concat import QuantizeBeforeConcat
from edgec.compiler.passes.recognize_activations import RecognizeActivations
from edgec.compiler.passes.recognize_layer_norm import RecognizeLayerNorm
from edgec.compiler.passes.remove_redundant_moves import RemoveRedundantMoves
from edgec.compiler.passes.settle_seen_codes import SettleSeenCodes
from edgec.compiler.passes.settle_stored import SettleStored

# Batch normalizations become affine, affines go into weights; what is left between the linear
# operators is then spelled plainly enough to be recognized.
CANONICALIZE: tuple[Pass, ...] = (
    SettleSeenCodes(),
    SettleStored(),
    QuantizeBeforeConcat(),
    RemoveRedundantMoves(),
    FoldBatchNorm(),
    RecognizeLayerNorm(),
    FoldAffine(),
    RecognizeActivations(),
    ConvTransposeAsConv(),
    # A constant behind a recognized activation meets the one that came out of it.
    FoldAffine(),
)

__all__ = [
    "CANONICALIZE",
    "ConvTransposeAsConv",
    "FoldAffine",
    "FoldBatchNorm",
    "Pass",
    "QuantizeBeforeConcat",
    "RecognizeActivations",
    "RecognizeLayerNorm",
    "RemoveRedundantMoves",
    "SettleSeenCodes",
    "SettleStored",
]
