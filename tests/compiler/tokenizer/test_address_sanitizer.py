"""Damaged tokenizers read no memory but their own."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support import tokenizer_samples

from edgec.compiler.codegen.executor import FOLDER as EXECUTOR
from edgec.compiler.tokenizer.native import FOLDER, SOURCES
from edgec.compiler.tokenizer.tokenizer_file import tokenizer_file

FUZZER = Path(tokenizer_samples.__file__).with_name("fuzz_tokenizer.c")


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no compiler with AddressSanitizer")
    program = tmp_path / "fuzz"
    sources = [FUZZER, *(FOLDER / name for name in SOURCES)]
    options = ["-std=gnu11", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [compiler, *options, f"-I{FOLDER}", f"-I{EXECUTOR}", "-o", program, *sources, "-lm"],
        capture_output=True,
        text=True,
    )
    if built.returncode and "asan" in built.stderr:
        pytest.skip("the compiler has no AddressSanitizer")
    assert built.returncode == 0, built.stderr
    for name in ("Qwen 2", "Llama 2", "Unigram"):
        reference = tokenizer_samples.TOKENIZERS[name]()
        (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file(reference.to_str()))
        done = subprocess.run(
            [program, "10000", tmp_path / "tokenizer.bin"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        opened, refused = map(int, done.stdout.split())
        assert opened > 1000
        assert refused > 1000
