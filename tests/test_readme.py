"""The README's first command does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_quick_start(tmp_path: Path) -> None:
    """All of it but the installation, which CI has done: in an empty folder, as pasted."""
    block = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)[0]
    install, separator, commands = block.partition("pip install . &&")
    assert separator, f"the first command no longer installs: {install}"
    folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["sh", "-ec", commands],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 files are what the manifest says" in done.stdout
    assert done.stdout.rstrip().endswith("ok")
