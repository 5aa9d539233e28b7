"""Provide text of what the phases of a compile give, for `--dump`."""

from collections.abc import Mapping
from pathlib import Path

import onnx
from tvm import IRModule

from edgec.compiler.errors import OutputError
from edgec.compiler.ir.program import Program


class Dump:
    """A dump is a folder with the IR after each phase and a table of times.

    Args:
        folder: is made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
            self._write_text(f"{stem}.txt", onnx.printer.to_text(proto))
        elif isinstance(module, IRModule):
            self._write_text(f"{stem}.py", module.script())

    def write_times(self, seconds: Mapping[str, float]) -> None:
        """Write the table of times [s] by phase.

        Raises:
            OutputError: the folder cannot be written to.
        """
        rows = [f"{phase:<14}{time:8.2f} s" for phase, time in seconds.items()]
        total = f"{'total':<14}{sum(seconds.values()):8.2f} s"
        self._write_text("times.txt", "\n".join([*rows, total]) + "\n")

    def _write_text(self, name: str, text: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {self._folder / name}: {error.strerror}") from None
