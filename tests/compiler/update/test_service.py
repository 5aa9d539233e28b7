import configparser
from pathlib import Path

import pytest

from edgec.compiler.errors import UsageError
from edgec.compiler.update.service import service_unit


@pytest.mark.parametrize("user", [None, "edgec"])
def test_a_unit_has_what_systemd_reads(user: str | None) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(service_unit(Path("/srv/digits"), 60, user))
    service = unit["Service"]
    assert service["ExecStart"].endswith(" -m edgec.compiler update agent /srv/digits --every 60")
    assert service["ReadWritePaths"] == "/srv/digits"
    assert service["Restart"] == "always"
    assert service.get("User") == user
    assert unit["Install"]["WantedBy"] == ("multi-user.target" if user else "default.target")


@pytest.mark.parametrize("name", ["/srv/my model", "/srv/%h", "/srv/a;b"])
def test_a_folder_that_systemd_reads_otherwise_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="plain letters"):
        service_unit(Path(name), 60, None)
