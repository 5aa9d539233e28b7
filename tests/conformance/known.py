"""The list of known failures: `known.toml` beside this file."""

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from conformance.cases import Case, Outcome

KNOWN = Path(__file__).with_name("known.toml")


@dataclass(frozen=True)
class Known:
    """A known describes a listed failure: its status, and why."""

    status: str
    why: str


def read_known(path: Path) -> dict[str, Known]:
    """Return known failures by case name."""
    if not path.exists():
        return {}
    groups = tomllib.loads(path.read_text(encoding="utf-8")).get("group", [])
    return {
        case: Known(group["status"], group["why"]) for group in groups for case in group["cases"]
    }


def write_known(path: Path, known: dict[str, Known]) -> None:
    """Write the list, cases of one status and reason together."""
    groups: dict[Known, list[str]] = defaultdict(list)
    for name, item in sorted(known.items()):
        groups[item].append(name)
    text = (
        "# Cases that do not pass, and why. A case that passes must go, a new one breaks CI.\n"
        "# `python tests/conformance/run.py --update` rewrites this file and keeps\n"
        f"# what is said in `why`. Made with onnx {onnx.__version__}.\n"
    )
    for item, cases in sorted(groups.items(), key=lambda g: (g[0].status, g[0].why)):
        text += f"\n[[group]]\nstatus = {_toml(item.status)}\nwhy = {_toml(item.why)}\ncases = [\n"
        text += "".join(f"  {_toml(case)},\n" for case in cases) + "]\n"
    path.write_text(text, encoding="utf-8")


def _toml(text: str) -> str:
    """Return a basic string; JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def update_known(
    known: dict[str, Known], cases: Sequence[Case], outcomes: dict[str, Outcome]
) -> dict[str, Known]:
    """Return the list after a run: reasons stay where the status is the same.

    Cases that did not run stay, those that no longer exist are for the caller to leave out.
    """
    result = {name: item for name, item in known.items() if name not in outcomes}
    for case in cases:
        outcome, before = outcomes[case.name], known.get(case.name)
        if outcome.status == "pass":
            continue
        if before and before.status == outcome.status:
            result[case.name] = before
        else:
            result[case.name] = Known(outcome.status, reason(case, outcome))
    return result


def check_known(known: dict[str, Known], outcomes: dict[str, Outcome]) -> list[str]:
    """Return what the list does not say: new failures, and listed cases that changed or pass."""
    problems = []
    for name, outcome in sorted(outcomes.items()):
        listed = known.get(name)
        if outcome.status == "pass" and listed:
            problems.append(f"{name} passes; remove it from the list (--update)")
        elif outcome.status != "pass" and not listed:
            problems.append(f"{name} is {outcome.status}: {outcome.message}")
        elif listed and listed.status != outcome.status:
            problems.append(
                f"{name} is {outcome.status}, listed as {listed.status}: {outcome.message}"
            )
    return problems


def reason(case: Case, outcome: Outcome) -> str:
    """Return a message without what is particular to the case, so that cases share it."""
    text = outcome.message
    if outcome.status == "wrong":
        kind = "values differ" if "values differ" in text else re.sub(r"^output \d+: ", "", text)
        return f"{case.operator}: {kind}"
    text = re.sub(r"^\d+ nodes? cannot be compiled: ", "", text)
    text = re.sub(r" \([^()]*?\):", ":", text)
    text = re.sub(r"\S*/model\.onnx", "the model", text)
    text = re.sub(r"^\S+ (holds text|is of type)", r"an input \1", text)
    return text[:200]
