from pathlib import Path

import pytest
from support.trust_fuzz import GCC, build, prepare, run


@pytest.mark.skipif(GCC is None, reason="gcc is not installed")
def test_whatever_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few cases; tests/benchmarks/fuzz_trust.py runs a hundred thousand."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    prepare(tmp_path)
    run(build(tmp_path), tmp_path, seed=1, cases=300)
