from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli_calls import Call

from edgec.compiler import Bundle, CompileOptions, compile_model
from edgec.compiler.cli.main import main
from edgec.models import load_model_recipe


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits classifier's ONNX file."""
    return load_model_recipe("digits").write(tmp_path_factory.mktemp("models") / "digits.onnx")


@pytest.fixture(scope="session")
def compile_digits(digits: Path) -> Callable[[Path], Bundle]:
    """Compiles the digits classifier for this machine to a path."""

    def compile_to(output: Path) -> Bundle:
        options = CompileOptions(shapes={"image": (1, 1, 8, 8)})
        return compile_model(digits, "native", options, output=output)

    return compile_to


@pytest.fixture(scope="session")
def digits_bundle(
    compile_digits: Callable[[Path], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A compiled bundle; tests that change it work on a copy."""
    return compile_digits(tmp_path_factory.mktemp("bundles") / "digits.edgec").path


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Runs a command in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
