"""Which tests are slow, beside those that say so: `make check` leaves them out."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Files and folders whose tests take more than a second each on a calm machine, as most of them
# compile, build or tune whole models.
SLOW = ("compiler/boards",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those files."""
    for item in items:
        path = item.path.relative_to(TESTS)
        if any(path.is_relative_to(name) for name in SLOW):
            item.add_marker(pytest.mark.slow)
