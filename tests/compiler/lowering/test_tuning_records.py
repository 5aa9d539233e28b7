"""Databases of tuning records: what is kept, what is dropped, what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgec.compiler.cli.main import main
from edgec.compiler.errors import BadInputError, OutputError
from edgec.compiler.kernels.template import from_text, to_text
from edgec.compiler.kernels.templates import TEMPLATES
from edgec.compiler.lowering.tuning_records import (
    READY,
    Database,
    Key,
    Record,
    append,
    best_records,
    make_record,
    prune,
    target_key,
)
from edgec.targets import load_target

KEY = Key("edgec.matmul", '{"m":1}')
OTHER = Key("edgec.matmul", '{"m":2}')
V3 = load_target("x86-64-v3")
RPI4 = load_target("rpi4")


def record(tile: int, seconds: float | None, key: Key = KEY, **fields: Any) -> Record:
    return make_record(key, json.dumps({"tile": tile}), V3, 1, seconds, **fields)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "db.jsonl"
    first, second = record(1, 2e-6), record(2, None, failure="crashed")
    append(path, [first])
    append(path, [second])
    assert Database.read(path).records == (first, second)
    assert Database.read(path).dropped == ()


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_broken_last_line_is_dropped_with_a_warning(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "db.jsonl"
    append(path, [record(1, 2e-6), record(2, 1e-6)])
    path.write_bytes(path.read_bytes()[:-cut])
    database = Database.read(path)
    if cut == 1:
        assert len(database.records) == 2
    else:
        assert [r.decision["tile"] for r in database.records] == [1]
        assert "dropped 1 damaged line (2)" in database.warning()
        assert database.remarks() == [database.warning()]
    # Who writes next does not continue the broken line.
    append(path, [record(3, 3e-6)])
    assert Database.read(path).records[-1].decision == {"tile": 3}


# Without the imports of this file: they load TVM.
WRITER = """
import json, sys
from pathlib import Path
from edgec.compiler.lowering.tuning_records import Key, append, make_record
from edgec.targets import load_target
target = load_target("x86-64-v3")
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 50):
    decision = json.dumps({"tile": number})
    append(Path(sys.argv[1]), [make_record(Key("edgec.matmul", "{}"), decision, target, 1, 1e-6)])
"""


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(start)])
        for start in (0, 1000, 2000)
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    database = Database.read(path)
    assert not database.dropped
    tiles = sorted(r.decision["tile"] for r in database.records)
    assert tiles == [start + i for start in (0, 1000, 2000) for i in range(50)]


def test_the_best_median_counts_and_a_lucky_time_does_not() -> None:
    records = [record(1, 1.0e-6), record(1, 3e-6), record(1, 3e-6), record(2, 2e-6)]
    assert best_records(records)[KEY].decision == {"tile": 2}


def test_confirmed_counts_more_than_a_single_trial() -> None:
    records = [record(1, 1e-6), record(2, 2e-6, confirmed=True)]
    assert best_records(records)[KEY].decision == {"tile": 2}


def test_a_machine_counts_more_than_an_emulator() -> None:
    records = [record(1, 1e-6, emulated=True, confirmed=True), record(2, 2e-6)]
    assert best_records(records)[KEY].decision == {"tile": 2}


def test_failures_are_never_chosen() -> None:
    assert best_records([record(1, None, failure="crashed")]) == {}


def test_prune_keeps_one_for_each_kernel() -> None:
    kept = prune([record(1, 1e-6), record(2, 2e-6), record(1, 3e-6, OTHER)])
    assert [(r.key, r.decision["tile"]) for r in kept] == [(KEY, 1), (OTHER, 1)]


def test_records_of_another_target_or_version_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    append(path, [record(1, 1e-6)])
    database = Database.read(path)
    assert len(database.fitting(V3)) == 1
    assert database.fitting(RPI4) == []
    assert "for x86-64-v3, not for rpi4" in database.why_unfit(RPI4)
    assert database.remarks(RPI4, V3, RPI4) == [database.why_unfit(RPI4)]
    old = record(1, 1e-6).model_copy(update={"versions": {"edgec": "0.0.1"}})
    assert Database(path, (old,)).fitting(V3) == []
    assert "edgec 0.0.1" in Database(path, (old,)).why_unfit(V3)


def test_a_target_is_known_by_what_its_code_depends_on() -> None:
    renamed = V3.model_copy(update={"name": "other", "description": "x", "memory_mib": 99})
    assert target_key(renamed) == target_key(V3)
    assert target_key(V3.model_copy(update={"vector_registers": 32})) != target_key(V3)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("one\ntwo\n")
    with pytest.raises(BadInputError, match="no database of tuning records"):
        Database.read(text)
    with pytest.raises(BadInputError, match="no such file"):
        Database.read(tmp_path / "none.jsonl")


def test_a_full_disk_says_so_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        append(Path("/dev/full"), [record(1, 1e-6)])


def test_merge_export_prune_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, out = tmp_path / "1.jsonl", tmp_path / "2.jsonl", tmp_path / "out.jsonl"
    append(one, [record(1, 3e-6), record(5, 4e-6, OTHER)])
    append(two, [record(2, 2e-6), record(1, 3e-6)])
    assert main(["db", "merge", str(one), str(two), "-o", str(out)]) == 0
    best = best_records(Database.read(out).records)
    assert best[KEY].decision == {"tile": 2}
    assert best[OTHER].decision == {"tile": 5}
    assert main(["db", "prune", str(out)]) == 0
    assert len(Database.read(out).records) == 2
    exported = tmp_path / "v3.jsonl"
    assert main(["db", "export", str(out), "-t", "x86-64-v3", "-o", str(exported)]) == 0
    assert len(Database.read(exported).records) == 2
    capsys.readouterr()
    assert main(["db", "list", str(out), "--json"]) == 0
    assert {r["decision"]["tile"] for r in json.loads(capsys.readouterr().out)} == {2, 5}
    assert main(["db", "export", str(out), "-t", "rpi4", "-o", str(exported)]) == 4
    assert "not for rpi4" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(READY.glob("*.jsonl")), ids=lambda path: path.stem)
def test_records_that_come_with_edgec_fit(path: Path) -> None:
    target = load_target(path.stem)
    database = Database.read(path)
    assert database.records
    assert not database.dropped
    assert len(best_records(database.fitting(target))) == len(database.records)
    for record in database.records:
        template = TEMPLATES[record.operator]
        workload = from_text(template.workload, record.key.workload)
        decision = from_text(template.decision, record.decision_text)
        assert to_text(workload) == record.key.workload
        assert decision in template.space(workload, target)
