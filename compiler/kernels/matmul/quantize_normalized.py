"""Normalize the rows of a matrix by their root mean square, and quantize them for products.

One step in place of two, see `softmax_norm` and `quantize_rows`: a row stays on the stack between.
"""

from dataclasses import dataclass

from edgec.compiler.kernels.emit.kernel import Kernel
from edgec.compiler.kernels.matmul.quantize_rows import RowLayout, RowQuantizer
from edgec.compiler.kernels.softmax_norm import RowWriter, SoftmaxNormWorkload
from edgec.compiler.kernels.template import undecided
from edgec.targets.target import Target

# Values of a row that the stack holds.
MOST_COLUMNS = 8192


@dataclass(frozen=True)
class QuantizeNormalizedWorkload:
    """A workload of this kind describes rows that are normalized and then quantized.

    Attributes:
        rows: their normalization.
        group: values that share a step, a multiple of 16.
    """

    rows: SoftmaxNormWorkload
    group: int

    @property
    def macs(self) -> int:
        """Return values read."""
        return self.rows.macs


def can_quantize(workload: SoftmaxNormWorkload) -> bool:
    """Return whether rows can be quantized by the kernel that computes them."""
    return workload.operation == "rms_norm" and workload.columns <= MOST_COLUMNS


def emit_quantize_normalized(
    workload: QuantizeNormalizedWorkload, target: Target, name: str
) -> Kernel:
    """Write the kernel; its buffers are data, gamma, and the quantized rows, int8."""
    return _NormalizedRows(workload, target, name).kernel()


class _NormalizedRows(RowWriter):
    def __init__(self, workload: QuantizeNormalizedWorkload, target: Target, name: str) -> None:
        self.layout = RowLayout(workload.rows.columns, workload.group)
        self.target = target
        super().__init__(workload.rows, target, name)

    def declare_output(self) -> None:
        size = self.work.rows * self.layout.bytes
        self.output = self.emit.buffer("output", size, "int8")

    def kernel(self) -> Kernel:
        w, e = self.work, self.emit
        quantizer = RowQuantizer(e, self.layout, self.output, self.target)
        with e.tasks() as task:
            self.begin_row(task)
            row = e.local("row", w.columns, "float32")
            self.normalize(row, 0)
            quantizer.write(task, lambda at, lanes: e.load(row, at, lanes))
        return Kernel(e.function(self.name), w.rows)


TEMPLATE = undecided(QuantizeNormalizedWorkload, emit_quantize_normalized)
