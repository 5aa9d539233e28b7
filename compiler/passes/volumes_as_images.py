"""Compute on volumes as on stacks of images: in two dimensions, with depth as part of the batch.

A volume [N, C, D, H, W] is kept as images [N * D, C, H, W]. A window over depth gathers the images
that it reaches, side by side along channels:

    conv3d(x, w)[d]  =  conv2d([x[d s + k r - p] for each tap k], [w[:, :, k] for each tap k])

with zeros for images beyond the volume; in groups, where channels may not mix, the sum of one
convolution for each tap. A window of one value reads each volume as one tall image. What computes
element by element, or by channel, goes on on images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from tvm import IRModule, relax

from edgec.compiler.ir.relax_helpers import constant, dtype_of, op_name, shape_of, value_of
from edgec.compiler.numerics.activations import BY_OPERATOR
from edgec.compiler.passes.base import CallRewriter, Pass

# From a volume to its images, apart from the batch, and back.
_SWAP = [0, 2, 1, 3, 4]
FEW_CHANNELS = 8
_BINARY = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")

op = relax.op


@dataclass(frozen=True)
class VolumesAsImages(Pass):
    """Replace `nn.conv3d` by operators on images.

    1. NCDHW, static shapes.
    2. The weight is constant.
    """

    def apply(self, module: IRModule) -> IRModule:
        """Rewrite `main`."""
        return _VolumesAsImagesRewriter(module).run()


@relax.expr_functor.mutator
class _VolumesAsImagesRewriter(CallRewriter):
    def rewrite(self, call: relax.Call) -> relax.Expr | None:
        name, shape = op_name(call), shape_of(call)
        if shape is None or len(shape) != 5:
            return None
        if name == "relax.nn.conv3d":
            return self._convolution(call)
        if name in BY_OPERATOR or name in _BINARY or name == "relax.concat":
            return self._elementwise(call, shape)
        return None

    # Between volumes and images

    def _images(self, volume: relax.Expr) -> relax.Expr:
        """Return a volume's images [N * D, C, H, W]."""
        known = self._known_images(volume)
        if known is not None:
            return known
        n, channels, depth, *plane = shape_of(volume) or ()
        moved = self.emit(op.permute_dims(volume, _SWAP))
        return self.emit(op.reshape(moved, [n * depth, channels, *plane]))

    def _known_images(self, volume: relax.Expr) -> relax.Expr | None:
        """Return the images that a volume was made of, None if it was not."""
        moved = self.definition(volume, "relax.permute_dims")
        if moved is None or [int(axis) for axis in moved.attrs.axes or ()] != _SWAP:
            return None
        stacked = self.definition(moved.args[0], "relax.reshape")
        if stacked is None:
            return None
        split, images = shape_of(stacked), shape_of(stacked.args[0])
        if split is None or images != (split[0] * split[1], *split[2:]):
            return None
        return stacked.args[0]

    def _volume(self, images: relax.Expr, batch: int) -> relax.Expr:
        """Return the volumes of images, of one expression for each batch."""
        count, *rest = shape_of(images) or ()
        split = self.emit(op.reshape(images, [batch, count // batch, *rest]))
        return op.permute_dims(split, _SWAP)

    # Operators

    def _convolution(self, call: relax.Call) -> relax.Expr | None:
        attrs, weight, shape = call.attrs, value_of(call.args[1]), shape_of(call)
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        before = shape_of(call.args[0])
        # (1, 2)
        if weight is None or layouts != ("NCDHW", "OIDHW", "NCDHW"):
            return None
        if before is None or shape is None or dtype_of(call) != dtype_of(call.args[0]):
            return None
        depth, *strides = (int(step) for step in attrs.strides)
        reach, *dilation = (int(step) for step in attrs.dilation)
        pads = [int(pad) for pad in attrs.padding]
        taps = _taps(shape[2], weight.shape[2], depth, reach, pads[0])
        settings = {
            "strides": strides,
            "padding": [*pads[1:3], *pads[4:6]],
            "dilation": dilation,
            "groups": int(attrs.groups),
        }
        if set(weight.shape[2:]) == {1} and {depth, *strides} == {1} and not any(pads):
            return self._pointwise(call, before, shape)
        images = self._images(call.args[0])
        if int(attrs.groups) == 1:
            gathered = self._gathered(images, before, taps)
            outputs, inputs, count, *window = weight.shape
            flat = weight.swapaxes(1, 2).reshape(outputs, inputs * count, *window)
            result = self.emit(op.nn.conv2d(gathered, constant(flat), **settings))
            return self._volume(result, shape[0])
        parts = [
            self.emit(
                op.nn.conv2d(
                    self._gathered(images, before, taps[:, tap : tap + 1]),
                    constant(weight[:, :, tap]),
                    **settings,
                )
            )
            for tap in range(weight.shape[2])
        ]
        return self._volume(
            reduce(lambda one, other: self.emit(op.add(one, other)), parts), shape[0]
        )

    def _pointwise(
        self, call: relax.Call, before: tuple[int, ...], shape: tuple[int, ...]
    ) -> relax.Expr:
        """Return a convolution of single values, on volumes as tall images or on their images."""
        weight, groups = value_of(call.args[1]), int(call.attrs.groups)
        assert weight is not None
        kernel, images = constant(weight[:, :, 0]), self._known_images(call.args[0])
        if images is not None:
            return self._volume(self.emit(op.nn.conv2d(images, kernel, groups=groups)), shape[0])
        n, channels, depth, high, wide = before
        if n == 1 and groups == 1 and len(weight) <= FEW_CHANNELS:
            # In blocks of channels most of a vector would be empty.
            matrix = self.emit(op.reshape(call.args[0], [channels, depth * high * wide]))
            product = op.matmul(constant(weight.reshape(len(weight), channels)), matrix)
            return op.reshape(self.emit(product), shape)
        tall = self.emit(op.reshape(call.args[0], [n, channels, depth * high, wide]))
        return op.reshape(self.emit(op.nn.conv2d(tall, kernel, groups=groups)), shape)

    def _gathered(
        self, images: relax.Expr, volume: Sequence[int], taps: NDArray[np.int64]
    ) -> relax.Expr:
        """Return the images that windows reach, side by side along channels.

        Args:
            images: [N * D, C, H, W].
            volume: N, C, D, H, W.
            taps: [windows, taps], the number of an image; those beyond the volume are zero.
        """
        n, channels, depth, *plane = volume
        count, size = taps.shape[0], channels * int(np.prod(plane))
        shape = [n * count, channels * taps.shape[1], *plane]
        if np.array_equal(taps.reshape(-1), np.arange(depth)):
            return images
        stack = self.emit(op.reshape(images, [n, depth, size]))
        low, high = max(0, -int(taps.min())), max(0, int(taps.max()) - depth + 1)
        if low or high:
            stack = self.emit(op.nn.pad(stack, [0, 0, low, high, 0, 0]))
        picked = self._picked(stack, taps.reshape(-1) + low)
        return self.emit(op.reshape(picked, shape))

    def _picked(self, stack: relax.Expr, numbers: NDArray[np.int64]) -> relax.Expr:
        """Return some of the images [N, D, C * H * W]."""
        return self.emit(op.take(stack, constant(numbers.astype(np.int32)), 1, mode="clip"))

    def _elementwise(self, call: relax.Call, shape: tuple[int, ...]) -> relax.Expr | None:
        """Return what goes on on images: all operands are made of images or broadcast to them."""
        operands = list(call.args)
        if op_name(call) == "relax.concat":
            fields = (
                self.lookup_binding(operands[0])
                if isinstance(operands[0], relax.Var)
                else operands[0]
            )
            if not isinstance(fields, relax.Tuple) or int(call.attrs.axis) % 5 != 1:
                return None
            found = [self._known_images(field) for field in fields.fields]
            if any(image is None for image in found):
                return None
            return self._volume(self.emit(op.concat(found, 1)), shape[0])
        found = [self._operand(operand, shape) for operand in operands]
        if any(image is None for image in found) or all(
            value_of(image) is not None for image in found
        ):
            return None
        made = relax.Call(call.op, found, call.attrs)
        return self._volume(self.emit(made), shape[0])

    def _operand(self, operand: relax.Expr, shape: tuple[int, ...]) -> relax.Expr | None:
        """Return an operand as images, or as a constant that broadcasts to them; else None."""
        array = value_of(operand)
        if array is None:
            return self._known_images(operand) if shape_of(operand) == shape else None
        if array.size == 1:
            return constant(array.reshape(()))
        if array.ndim < 5 or array.size != array.shape[1]:
            return None
        return constant(array.reshape(1, -1, 1, 1))


def _taps(count: int, kernel: int, stride: int, dilation: int, padding: int) -> NDArray[np.int64]:
    """Return the image that each tap of each window reads, [windows, taps].

    >>> _taps(2, 3, 2, 1, 1).tolist()
    [[-1, 0, 1], [1, 2, 3]]
    """
    starts = np.arange(count) * stride - padding
    return starts[:, None] + np.arange(kernel)[None, :] * dilation
