"""The plan of a split model: what is written is read back, and what cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgec.compiler.errors import BundleError, UsageError
from edgec.compiler.split.plan import PLAN, Plan

FIELDS: dict[str, Any] = {
    "model": {"name": "net", "sha256": "0" * 64},
    "programs": [
        {
            "name": "",
            "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 4]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2]}],
            "stages": [
                {"device": "a", "target": "rpi4", "bundle": "a.edgec", "inputs": ["x"],
                 "outputs": ["h"]},
                {"device": "b", "target": "rpi5", "bundle": "b.edgec", "inputs": ["h"],
                 "outputs": ["y"]},
            ],
            "values": [
                {"name": "x", "dtype": "float32", "shape": [1, 4], "from": "host", "to": ["a"]},
                {"name": "h", "dtype": "int8", "shape": [1, 8], "from": "a", "to": ["b"]},
                {"name": "y", "dtype": "float32", "shape": [1, 2], "from": "b", "to": ["host"]},
            ],
        }
    ],
}  # fmt: skip


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Plan.model_validate(FIELDS)
    plan.write(tmp_path)
    assert Plan.load(tmp_path) == plan
    assert json.loads((tmp_path / PLAN).read_bytes())["programs"][0]["values"][1]["from"] == "a"
    assert (plan.devices, plan.bundles) == (("a", "b"), {"a.edgec": "a", "b.edgec": "b"})
    with pytest.raises(UsageError, match="no program is named 'decode'"):
        plan.program("decode")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "of version 2"),
        ({"programs": [{**FIELDS["programs"][0], "stages": FIELDS["programs"][0]["stages"][1:]}]},
         "reads h before it is there"),
        ({"programs": [{**FIELDS["programs"][0], "stages": FIELDS["programs"][0]["stages"][:1]}]},
         "no stage gives the output y"),
        ({"whole": "../whole.edgec"}, "whole: String should match"),
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(json.dumps({"version": 1, **FIELDS, **change}))
    with pytest.raises(BundleError, match=message):
        Plan.load(tmp_path)
    with pytest.raises(BundleError, match="is no plan"):
        Plan.load(tmp_path / "other")
