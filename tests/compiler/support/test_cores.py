"""Quotas of control groups count as cores, as in the executor's `cores.c`."""

from pathlib import Path

import pytest

from edgec.compiler.support.cores import _quotas, usable_cores


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, [2]),
        ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 100000"}, [1, 4]),
        ("0::/", {"cpu.max": "300000 100000"}, [3]),
        (
            "7:memory:/m\n3:cpu,cpuacct:/a",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            [2],
        ),
        (
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            [],
        ),
        ("", {}, []),
    ],
)
def test_quotas(groups: str, files: dict[str, str], cores: list[int], tmp_path: Path) -> None:
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(_quotas(tmp_path / "own", tmp_path / "mount")) == cores


def test_this_process_may_use_one_at_least() -> None:
    assert usable_cores() >= 1
