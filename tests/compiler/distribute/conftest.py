"""The small plan of these tests, compiled once."""

from pathlib import Path

import pytest
from support.split_model import write_plan


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a plan: stages a and b, and the whole model."""
    return write_plan(tmp_path_factory.mktemp("plans") / "small.plan")
