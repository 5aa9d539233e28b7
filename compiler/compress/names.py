"""Describe what compression steps are called on a command line.

Help lists them without loading TVM.
"""

# `N` stands for a number in percent. `compress.compression_recipe` says what each is.
STEP_NAMES = (
    "block-N",
    "channels-N",
    "distill",
    "kernels-N",
    "layers-N",
    "low-rank-N",
    "sparse-N",
)
