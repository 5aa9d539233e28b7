"""The library of a quantized model computes that model: the rule, and what must fail by it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from tvm import IRModule

from edgec.compiler import CompileOptions, compile_model, pipeline
from edgec.compiler.errors import ParityError
from edgec.compiler.passes.insert_quantization import InsertQuantization
from edgec.compiler.quantize.numerics import ChannelWeight
from edgec.compiler.quantize.quantizer import QuantizedModel
from edgec.compiler.quantize.recipe import RECIPES
from edgec.compiler.quantize.settings import QuantizeOptions
from edgec.compiler.samples import SampleOptions
from edgec.targets import Target

IMAGES = (load_digits().images[:24] / 16).astype(np.float32)[:, None]


def compiled(digits: Path, data: Path, output: Path) -> float:
    """Share of what is allowed that the library is off by."""
    np.save(data, IMAGES)
    options = CompileOptions(
        shapes={"image": (1, 1, 8, 8)},
        quantize=QuantizeOptions(recipe=RECIPES["int8"]),
        samples=SampleOptions(source=str(data)),
    )
    bundle = compile_model(digits, "native", options, output=output)
    record = bundle.manifest.quantization
    assert record is not None
    wanted = bundle.manifest.tolerance.sqnr_db
    assert wanted is not None
    assert wanted == pytest.approx(min(record.sqnr_db["logits"] + 10, 50), abs=0.1)
    return bundle.manifest.parity.allowed_share["logits"]


@pytest.mark.parametrize("index", range(4))
def test_one_broken_scale_of_one_channel_fails(
    index: int, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if index == 0:
        assert compiled(digits, tmp_path / "x.npy", tmp_path / "whole.edgec") <= 1
    quantize, pack = pipeline.quantize_model, pipeline.pack
    found: list[QuantizedModel] = []

    def quantize_and_keep(*arguments: Any) -> QuantizedModel:
        found.append(quantize(*arguments))
        return found[-1]

    def pack_damaged(module: IRModule, target: Target) -> IRModule:
        """The library is of a graph with one other scale than the reference."""
        numbers = found[-1].quantization
        operator = numbers.plan.weighted()[index]
        stored = numbers.weights[operator.name]
        assert isinstance(stored, ChannelWeight)
        scales = stored.scales.copy()
        scales[len(scales) // 2] *= 1.25
        damaged = numbers.with_weights({operator.name: replace(stored, scales=scales)})
        return pack(InsertQuantization(damaged)(numbers.plan.graph.module), target)

    monkeypatch.setattr(pipeline, "quantize_model", quantize_and_keep)
    monkeypatch.setattr(pipeline, "pack", pack_damaged)
    with pytest.raises(ParityError, match="does not compute the quantized graph"):
        compiled(digits, tmp_path / "x.npy", tmp_path / "broken.edgec")
    assert not (tmp_path / "broken.edgec").exists()
