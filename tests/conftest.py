"""Which tests are slow, beside those that say so: `make check` leaves them out."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Files and folders that take more than some ten seconds on a calm machine, as their tests compile,
# build or tune whole models, or are many.
SLOW = ("compiler/boards",)


# Before pytest itself leaves out what `-m` does not select.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those files."""
    gone = [name for name in SLOW if not (TESTS / name).exists()]
    if gone:
        raise pytest.UsageError(f"tests/conftest.py: SLOW names what is not there: {gone}")
    for item in items:
        path = item.path.relative_to(TESTS)
        if any(path.is_relative_to(name) for name in SLOW):
            item.add_marker(pytest.mark.slow)
