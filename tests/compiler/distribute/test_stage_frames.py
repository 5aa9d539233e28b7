"""Damaged frames against a stage, under sanitizers; more in benchmarks/fuzz_stage.py."""

from pathlib import Path

import pytest
from support.stage_fuzz import GCC, build, run


@pytest.mark.skipif(GCC is None, reason="needs gcc")
def test_damaged_frames(tmp_path: Path) -> None:
    run(build(tmp_path), seed=1, cases=200)
