import hashlib
import subprocess
from pathlib import Path

import pytest
from support.trust_fuzz import GCC

from edgec.compiler.trust.native import FOLDER

MAIN = Path(__file__).parents[3] / "support" / "compare_sha256.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GCC is None:
        pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("sha256") / "compare"
    sources = [FOLDER / "sha256.c", FOLDER / "sha256_blocks.c"]
    subprocess.run([GCC, "-O1", f"-I{FOLDER}", "-o", path, MAIN, *sources], check=True)
    return path


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 40_000])
def test_digests_are_those_of_others_whatever_computes_them(program: Path, size: int) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    done = subprocess.run([program], input=data, capture_output=True, check=True)
    assert done.stdout.decode() == hashlib.sha256(data).hexdigest()
