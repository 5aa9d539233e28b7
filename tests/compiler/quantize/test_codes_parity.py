"""The library of a quantized model computes that model: the rule, and what must fail by it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.errors import ParityError
from edgec.compiler.passes.insert_quantization import InsertQuantization
from edgec.compiler.pipeline import _Rounded
from edgec.compiler.quantize.numerics import ChannelWeight
from edgec.compiler.quantize.recipe import RECIPES
from edgec.compiler.quantize.settings import QuantizeOptions
from edgec.compiler.samples import SampleOptions

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
    make = _Rounded.make

    def broken(*arguments: object) -> _Rounded:
        """The reference of the whole graph, a library of a graph with one other scale."""
        rounded = make(*arguments)  # type: ignore[arg-type]
        numbers = rounded.model.quantization
        operator = numbers.plan.weighted()[index]
        stored = numbers.weights[operator.name]
        assert isinstance(stored, ChannelWeight)
        scales = stored.scales.copy()
        scales[len(scales) // 2] *= 1.25
        damaged = numbers.with_weights({operator.name: replace(stored, scales=scales)})
        module = InsertQuantization(damaged)(numbers.plan.graph.module)
        return replace(rounded, model=replace(rounded.model, module=module))

    monkeypatch.setattr(_Rounded, "make", broken)
    with pytest.raises(ParityError, match="does not compute the quantized graph"):
        compiled(digits, tmp_path / "x.npy", tmp_path / "broken.edgec")
    assert not (tmp_path / "broken.edgec").exists()
