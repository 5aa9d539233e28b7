"""Provide DynamicQuantizeLSTM of `com.microsoft`: an LSTM with weights of 8 bits.

As its quantizer writes.

The inputs, all steps at once, and the hidden state, in each step, are rounded to uint8 by their
range, as ONNX Runtime does it; gates and states are floats.
"""

from dataclasses import replace

import numpy as np
from tvm import relax

from edgec.compiler.frontend.converters.quantization import (
    integer_product,
    quantize_dynamically,
)
from edgec.compiler.frontend.converters.recurrent import Lstm, convert_cells
from edgec.compiler.frontend.node import Node


def convert_dynamic_quantize_lstm(node: Node) -> list[relax.Expr]:
    """Convert DynamicQuantizeLSTM: X, W [D, I, 4H], R [D, H, 4H], B, lengths, states, P as of LSTM.

    Then a scale and a zero point of W and of R, each [D] or [D, 4H].
    """
    quantized = [node.constant(index, name).swapaxes(1, 2) for index, name in ((1, "W"), (2, "R"))]
    weights = [relax.const(np.ascontiguousarray(array)) for array in quantized]
    return convert_cells(replace(node, inputs=(node.input(0), *weights, *node.inputs[3:])), _Cell)


class _Cell(Lstm):
    """A cell is an LSTM whose two products are of integers."""

    loop = None

    def weigh(self, data: relax.Expr) -> relax.Expr:
        """Return X Wᵀ, [T, N, GH]."""
        return self._product(data, self.weight, 8)

    def recur(self, hidden: relax.Expr) -> relax.Expr:
        """Return h Rᵀ, [N, GH]."""
        return self._product(hidden, self.recurrence, 10)

    def _product(self, data: relax.Expr, quantized: relax.Expr, parameters: int) -> relax.Expr:
        """Return a product with quantized values [K, GH].

        Whose scale and zero point are inputs of these numbers.
        """
        node, op = self.node, relax.op
        scale, zero = (
            relax.const(np.ascontiguousarray(node.constant(index, name)[self.direction]))
            for index, name in ((parameters, "scale"), (parameters + 1, "zero_point"))
        )
        rounded, step, offset = quantize_dynamically(node, data)
        total = integer_product(node, rounded, offset, quantized, zero)
        factor = node.call(op.multiply, step, scale)
        return node.call(op.multiply, node.cast(total, "float32"), factor)
