from collections.abc import Iterator

import pytest
from support.signed_bundle import SignedBundle, make_signed_bundle


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedBundle]:
    """A small signed bundle, in a folder that is this user's configuration as well."""
    folder = tmp_path_factory.mktemp("signed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder))
        yield make_signed_bundle(folder)
