"""Provide tuning records: which decision was how fast, for which kernel on which target.

A database is a file of JSON lines that is only ever appended to, one line for each measurement.
Writers take turns by a lock on the file and write whole lines, so a process that is killed leaves
at most one broken line behind, which readers drop and say so.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgec.compiler.errors import BadInputError, OutputError
from edgec.compiler.support.files import write_atomically
from edgec.targets.target import Target, record_folder

# Records that come with edgec, a file for each target.
READY = record_folder()
VERSIONED = ("edgec", "apache-tvm")

# What code generation and its analytic model do not depend on.
_NOT_CODE = {
    *("name", "description", "emulator", "glibc", "linker"),
    *("memory_mib", "memory_gb_per_s", "cores"),
}

# What calibration sets in a workload: of the quantized value of a padding it matters to a decision
# whether it is zero, of the parameters of a requantization which function comes between.
_PADDING = "border"
_REQUANTIZE, _FUNCTION = "requantize", slice(1, 2)


class Key(NamedTuple):
    """A key says what a decision is for.

    Attributes:
        operator: Relax name of the kernel template.
        workload: what is computed, as text (`kernels.templates.to_text`).
    """

    operator: str
    workload: str


def alike(key: Key) -> Key:
    """Return the key of all kernels that differ in what calibration sets, and take one decision.

    >>> alike(Key("edgec.integer_conv", '{"conv":{},"border":114}')).workload
    '{"conv":{},"border":1}'
    """
    fields = json.loads(key.workload)
    if fields.get(_PADDING):
        fields[_PADDING] = 1
    for step in fields.get("conv", fields).get("epilogue") or ():
        if step["op"].startswith(_REQUANTIZE):
            step["parameters"] = step["parameters"][_FUNCTION]
    return Key(key.operator, _compact(fields))


class Record(BaseModel):
    """A record describes one measurement of one decision.

    Attributes:
        format: the format of this line.
        operator: Relax name of the kernel template.
        workload: fields of what is computed.
        decision: fields of how.
        target: name of the target.
        target_key: digest of everything in the target that code generation depends on.
        threads: threads that shared the kernel's tasks.
        seconds: time of one call, None if it failed.
        confirmed: one of several decisions that were compared again at the end of a run, and the
            best of them.
        failure: why there is no time.
        machine: where it was measured.
        emulated: whether that was an emulator: then times mean little.
        versions: the versions of edgec and TVM.
        date: when, in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    operator: str
    workload: dict[str, Any]
    decision: dict[str, Any]
    target: str
    target_key: str
    threads: int = Field(ge=1)
    seconds: float | None = Field(default=None, gt=0)
    confirmed: bool = False
    failure: str = ""
    machine: str = ""
    emulated: bool = False
    versions: dict[str, str]
    date: datetime

    @property
    def key(self) -> Key:
        """Return what it is for."""
        return Key(self.operator, _compact(self.workload))

    @property
    def measured_ms(self) -> float | None:
        """Return the time of a call on a machine; None if it failed, or an emulator counted it."""
        return None if self.seconds is None or self.emulated else self.seconds * 1e3

    @property
    def decision_text(self) -> str:
        """Return the decision as `kernels.templates.to_text` writes it."""
        return _compact(self.decision)


def _compact(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))


def make_record(
    key: Key,
    decision: str,
    target: Target,
    threads: int,
    seconds: float | None,
    **fields: Any,
) -> Record:
    """Return a record of now, by this version of edgec."""
    return Record(
        operator=key.operator,
        workload=json.loads(key.workload),
        decision=json.loads(decision),
        target=target.name,
        target_key=target_key(target),
        threads=threads,
        seconds=seconds,
        versions=versions(),
        date=datetime.now(UTC).replace(microsecond=0),
        **fields,
    )


def target_key(target: Target) -> str:
    """Return digest of what code generation depends on: equal for equal machines of any name."""
    fields = target.model_dump(mode="json", exclude=_NOT_CODE)
    return hashlib.sha256(_compact(fields).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return versions that a record is good for."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


@dataclass(frozen=True)
class Database:
    """A database describes the records of a file.

    Attributes:
        path: the file.
        records: in the order written.
        dropped: lines that are not records.
    """

    path: Path
    records: tuple[Record, ...]
    dropped: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path, *, missing_ok: bool = False) -> "Database":
        """Read a file; lines that are damaged are dropped and counted.

        Raises:
            BadInputError: it cannot be read, or nothing in it is a record.
        """
        if path.exists() and not path.is_file():
            raise BadInputError(f"{path} is no file; --db and --records take a file")
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            if missing_ok:
                return cls(path, ())
            raise BadInputError(f"{path}: no such file; edgec tune --db makes it") from None
        except OSError as error:
            raise BadInputError(f"cannot read {path}: {error.strerror}") from None
        records, dropped = [], []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError:
                dropped.append(number)
        if dropped and not records and len(dropped) > 1:
            raise BadInputError(
                f"{path} is no database of tuning records: none of its {len(dropped)} lines is one"
            )
        return cls(path, tuple(records), tuple(dropped))

    def warning(self) -> str:
        """Return one line about what was dropped; empty if nothing was."""
        if not self.dropped:
            return ""
        lines = ", ".join(map(str, self.dropped[:5])) + ("…" if len(self.dropped) > 5 else "")
        plural = "s" if len(self.dropped) > 1 else ""
        return f"{self.path}: dropped {len(self.dropped)} damaged line{plural} ({lines})"

    def fitting(self, target: Target, threads: int | None = None) -> list[Record]:
        """Return records for exactly this target and this version of edgec."""
        key, current = target_key(target), versions()
        return [
            record
            for record in self.records
            if record.target_key == key
            and record.versions == current
            and threads in (None, record.threads)
        ]

    def why_unfit(self, target: Target) -> str:
        """Return one line on why no record fits a target; empty if some does or there are none."""
        if not self.records or self.fitting(target):
            return ""
        here = target_key(target)
        names = sorted({r.target for r in self.records if r.target_key != here})
        if all(record.target_key != here for record in self.records):
            return f"{self.path} holds records for {', '.join(names)}, not for {target.name}"
        found = sorted({" ".join(f"{k} {v}" for k, v in r.versions.items()) for r in self.records})
        return (
            f"{self.path} holds records of {'; '.join(found)}, this is "
            f"{' '.join(f'{k} {v}' for k, v in versions().items())}; tune again"
        )

    def remarks(self, *targets: Target) -> list[str]:
        """Return a line for each reason why records do not count: damage, or another target."""
        found = [self.warning(), *(self.why_unfit(target) for target in targets)]
        return [line for line in dict.fromkeys(found) if line]


def append(path: Path, records: Iterable[Record]) -> None:
    """Add records to a file, all or none of which another reader sees broken.

    Raises:
        OutputError: it cannot be written.
    """
    data = "".join(record.model_dump_json() + "\n" for record in records).encode()
    if not data:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                if stream.read(1) != b"\n":
                    # Somebody was killed while writing: what he left stays a line of its own.
                    data = b"\n" + data
            written = stream.write(data)
            if written != len(data):
                stream.truncate(end)
                raise OSError(28, "no space left on device")
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None


def replace(path: Path, records: Iterable[Record]) -> None:
    """Write a file as a whole, atomically.

    Raises:
        OutputError: it cannot be written.
    """
    write_atomically(path, "".join(record.model_dump_json() + "\n" for record in records))


def summarize(records: Sequence[Record]) -> dict[Key, dict[str, float]]:
    """Return median time of each decision that ran, by what it is for."""
    times: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.seconds is not None:
            times[record.key][record.decision_text].append(record.seconds)
    return {
        key: {decision: statistics.median(values) for decision, values in by_decision.items()}
        for key, by_decision in times.items()
    }


def best_records(records: Sequence[Record]) -> dict[Key, Record]:
    """Return the record to use for each kernel.

    A confirmed one if there is one (of several the fastest), else the decision of the best
    median. What was measured in an emulator gives way to what was measured on a machine.
    """
    by_key: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        if record.seconds is not None:
            by_key[record.key].append(record)
    best = {}
    for key, found in by_key.items():
        found = [r for r in found if not r.emulated] or found
        confirmed = [r for r in found if r.confirmed]
        if confirmed:
            best[key] = min(confirmed, key=_seconds)
            continue
        medians = summarize(found)[key]
        winner = min(medians, key=medians.__getitem__)
        best[key] = min((r for r in found if r.decision_text == winner), key=_seconds)
    return best


def _seconds(record: Record) -> float:
    assert record.seconds is not None
    return record.seconds


def prune(records: Sequence[Record]) -> list[Record]:
    """Keep only the record to use for each kernel, target, thread count and version."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        group = (record.target_key, record.threads, tuple(sorted(record.versions.items())))
        groups[group].append(record)
    return [record for group in groups.values() for record in best_records(group).values()]
