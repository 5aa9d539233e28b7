"""Write what the phases of a compile give, for `--dump`: ONNX models as such, modules as text."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from tvm import IRModule

from edgec.compiler.errors import OutputError
from edgec.compiler.ir.program import Program
from edgec.compiler.support.onnx_proto import save_proto, without_weights


class Dump:
    """A dump is a folder with the IR after each phase and a table of times.

    Args:
        folder: is made when it is first written to.
        weights: with the values of large constants; by default only their types and shapes.
    """

    def __init__(self, folder: Path, weights: bool = False) -> None:
        self._folder = folder
        self._weights = weights

    def write(self, number: int, phase: str, result: object) -> None:
        """Write what a phase gave, if it is a model or a module.

        Raises:
            OutputError: the folder cannot be written to.
        """
        proto = getattr(result, "proto", result)
        module = getattr(result, "module", result)
        if isinstance(result, Program):
            module = IRModule(result.functions)
        stem = f"{number:02}-{phase}"
        if isinstance(proto, onnx.ModelProto):
            self._write(f"{stem}.onnx", proto if self._weights else without_weights(proto))
        elif isinstance(module, IRModule):
            # TVM writes constants as numbers of entries of the metadata.
            self._write(f"{stem}.py", module.script(show_meta=self._weights))

    def write_times(self, seconds: Mapping[str, float]) -> None:
        """Write the table of times [s] by phase.

        Raises:
            OutputError: the folder cannot be written to.
        """
        rows = [f"{phase:<14}{time:8.2f} s" for phase, time in seconds.items()]
        total = f"{'total':<14}{sum(seconds.values()):8.2f} s"
        self._write("times.txt", "\n".join([*rows, total]) + "\n")

    def _write(self, name: str, content: str | onnx.ModelProto) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                (self._folder / name).write_text(content, encoding="utf-8")
            else:
                save_proto(content, self._folder / name)
        except OSError as error:
            raise OutputError(f"cannot write {self._folder / name}: {error.strerror}") from None
