"""Turn a transposed convolution that only spreads pixels into a 1x1 convolution.

With a window as large as the stride no two input pixels meet in an output pixel:

    out[n, o, s y + i, t x + j]  =  sum over c of in[n, c, y, x] * weight[c, o, i, j]

That is a 1x1 convolution to O * s * t channels, followed by moving those from channels to space
(Shi et al. 2016, sub-pixel convolution). Where these channels fit in one vector it computes
several of them at a time, instead of one value in a vector that is otherwise empty.
"""

from dataclasses import dataclass

from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, op_name, shape_of, value_of
from edgec.compiler.passes.base import CallRewriter, Pass

FEW_CHANNELS = 16


@dataclass(frozen=True)
class ConvTransposeAsConv(Pass):
    """Replace `nn.conv2d_transpose` by `nn.conv2d` and a layout operator.

    1. NCHW, a constant weight, one group, no dilation.
    2. The window is as large as the stride, and nothing is padded or cut off.
    3. The new convolution has at most 16 output channels.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite every such convolution of `main`."""
        return _ConvTransposeAsConvRewriter(module).run()


@relax.expr_functor.mutator
class _ConvTransposeAsConvRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        if op_name(call) != "relax.nn.conv2d_transpose":
            return None
        data, weight, shape = call.args[0], value_of(call.args[1]), shape_of(call.args[0])
        attrs = call.attrs
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        # (1)
        if weight is None or shape is None or layouts != ("NCHW", "IOHW", "NCHW"):
            return None
        if int(attrs.groups) != 1 or any(int(step) != 1 for step in attrs.dilation):
            return None
        channels, out_channels, high, wide = weight.shape
        borders = [int(extent) for extent in (*attrs.padding, *attrs.output_padding)]
        # (2)
        if [int(step) for step in attrs.strides] != [high, wide] or any(borders):
            return None
        spread = out_channels * high * wide
        # (3)
        if spread > FEW_CHANNELS:
            return None
        batch, _, rows, columns = shape
        kernel = weight.transpose(1, 2, 3, 0).reshape(spread, channels, 1, 1)
        value = self.emit(relax.op.nn.conv2d(data, constant(kernel)))
        apart = [batch, out_channels, high, wide, rows, columns]
        moved = relax.op.permute_dims(self.emit(relax.op.reshape(value, apart)), [0, 1, 4, 2, 5, 3])
        together = [batch, out_channels, rows * high, columns * wide]
        return relax.op.reshape(self.emit(moved), together)
