"""`edgec db`; what records are is in `tests/compiler/lowering/test_tuning_records.py`."""

from pathlib import Path

from support.cli_calls import Call, check_error

from edgec.compiler.lowering.tuning_records import READY


def test_lists_merges_and_exports(call: Call, tmp_path: Path) -> None:
    ready = sorted(READY.glob("*.jsonl"))[0]
    code, out, _ = call("db", "list", ready)
    assert code == 0
    assert ready.stem in out
    code, out, _ = call("db", "merge", ready, ready, "-o", "all.jsonl")
    assert code == 0
    assert (tmp_path / "all.jsonl").exists()
    code, out, _ = call("db", "prune", "all.jsonl")
    assert "records kept" in out
    check_error(call("db", "list", "no.jsonl"), 4, "no such file")
    check_error(call("db", "merge", ready, "-o", "."), 4, "it is a folder")
