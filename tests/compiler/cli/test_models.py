"""`edgec models`."""

from pathlib import Path

from support.cli_calls import Call, check_error


def test_models_writes_a_file(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("models", "digits", "-o", "d.onnx")
    assert code == 0
    assert "edgec compile d.onnx --shape image=1,1,8,8" in out
    assert (tmp_path / "d.onnx").stat().st_size > 50_000


def test_a_path_that_cannot_be_written(call: Call) -> None:
    check_error(call("models", "digits", "-o", "no/d.onnx"), 4, "folder no does not exist")
    check_error(call("models", "digits", "-o", "."), 4, "it is a folder")
