"""What scores a quantized model is what the library is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_graphs import make_model, node, random

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration.samples import SampleOptions
from edgec.compiler.codegen import kernel_objects
from edgec.compiler.support.progress import Silent


class Current(Silent):
    """Knows the phase that runs."""

    phase = ""

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[None]:
        """Note its name."""
        del number, total
        self.phase = title
        yield


def test_the_build_finds_every_kernel_that_the_score_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a parity check, whose place the score's outputs take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache" / "zig"))
    progress = Current()
    compiled: list[tuple[str, str]] = []
    write_object = kernel_objects.write_object

    def noted(functions: dict, *rest: object) -> None:
        compiled.extend((progress.phase, name) for name in functions)
        write_object(functions, *rest)

    monkeypatch.setattr(kernel_objects, "write_object", noted)
    nodes = [node("Conv", ["x", "w"], ["a"], pads=[1] * 4), node("Relu", ["a"], ["y"])]
    model = make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": random(8, 3, 3, 3)})
    onnx.save(model, tmp_path / "conv.onnx")
    np.save(tmp_path / "samples.npy", random(4, 3, 8, 8, seed=1))
    options = CompileOptions(
        quantize="int8", samples=SampleOptions(source=str(tmp_path / "samples.npy")), parity=False
    )
    bundle = compile_model(
        tmp_path / "conv.onnx", options=options, output=tmp_path / "b.edgec", progress=progress
    )
    assert {phase for phase, _ in compiled} == {"quantize"}
    assert any(name.startswith("integer_conv") for _, name in compiled)
    assert (record := bundle.manifest.quantization) is not None
    assert 20 < record.sqnr_db["y"] < 60
