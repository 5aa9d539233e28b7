"""The cascade of these tests, made once."""

import pytest
from support.cascade_models import CascadeModels, write_cascade_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> CascadeModels:
    """Return two bundles and their cascade."""
    return write_cascade_models(tmp_path_factory.mktemp("cascades"))
