"""The public calls: all there, typed, one for each verb; and only the command line prints."""

import ast
import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import edgec.compiler
from edgec.compiler.cli.main import edgec as group
from edgec.compiler.compress.names import STEP_NAMES

# The call of each verb. Of the others `db`, `board` and `keys` edit files of records, boards and
# keys; `chat` talks with people by the class `Generator`; `release`, `update` and `fleet` keep what
# `compiler/update` has classes for, `calibrate` those of `compiler/private_calibration`.
CALLS = {
    "compile": "compile_model",
    "tune": "tune_model",
    "fit": "fit_model",
    "run": "run_bundle",
    "verify": "verify_bundle",
    "bench": "bench_bundles",
    "inspect": "inspect_path",
    "install": "install_bundle",
    "evaluate": "evaluate_bundles",
    "compare": "evaluate_bundles",
    "cascade": "make_cascade",
    "advise": "advise",
    "deploy": "deploy_bundle",
    "serve": "serve_bundles",
    "sign": "sign_bundle",
    "split": "plan_split",
}
OTHERS = (
    "targets",
    "models",
    "db",
    "board",
    "keys",
    "chat",
    "release",
    "update",
    "fleet",
    "calibrate",
)
FOLDER = Path(edgec.compiler.__file__).parent
# Programs that speak with the process that started them, and what shows progress.
MAY_PRINT = {
    "__main__.py",
    "bench/start_up.py",
    "support/progress.py",
    "tune/measure.py",
    "tune/measure_board.py",
    "update/self_test.py",
}


def test_every_name_is_there() -> None:
    names = set(edgec.compiler._HOME) | {"__version__"}
    assert names == set(edgec.compiler.__all__)
    for name in edgec.compiler.__all__:
        assert getattr(edgec.compiler, name)
    with pytest.raises(AttributeError):
        _ = edgec.compiler.no_such_name
    assert edgec.compiler.__version__.count(".") == 2


def test_each_verb_has_a_typed_call() -> None:
    assert set(group.commands) == {*CALLS, *OTHERS}
    beside = ["govern_bundle", "tuning_tasks", "bench_on", "verify_on", "predict_model"]
    for name in [*CALLS.values(), *beside]:
        signature = inspect.signature(getattr(edgec.compiler, name))
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)


def _bare_any(annotation: ast.expr | None) -> bool:
    """Whether an annotation says Any, other than of an array's elements."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "NDArray":
        return False
    inner = [child for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr)]
    return ast.unparse(annotation) == "Any" or any(_bare_any(child) for child in inner)


def _public_annotations(source: str) -> list[tuple[str, ast.expr | None]]:
    """Names and annotations of the parameters, results and fields of a class or function."""
    (item,) = ast.parse(source).body
    members = item.body if isinstance(item, ast.ClassDef) else [item]
    found: list[tuple[str, ast.expr | None]] = []
    for member in members:
        if isinstance(member, ast.AnnAssign):
            found.append((ast.unparse(member.target), member.annotation))
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            given = member.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            found += [(f"{member.name}({a.arg})", a.annotation) for a in every]
            found.append((member.name, member.returns))
    return found


@pytest.mark.parametrize("name", sorted(set(edgec.compiler.__all__) - {"__version__"}))
def test_no_public_signature_says_any(name: str) -> None:
    annotations = _public_annotations(inspect.getsource(getattr(edgec.compiler, name)))
    assert [what for what, annotation in annotations if _bare_any(annotation)] == []


def test_a_bare_any_is_found() -> None:
    source = "def f(a: int, b: 'dict[str, Any]', c: NDArray[Any]) -> Any: ..."
    annotations = _public_annotations(source)
    assert [what for what, annotation in annotations if _bare_any(annotation)] == ["f(b)", "f"]


def test_recipes_are_taken_by_name_and_held_as_recipes() -> None:
    """The constructor's type has the name of a recipe in it, the attribute's has not."""
    for kind, recipe in (("Quantize", "int8"), ("Compress", "channels-25")):
        options = getattr(edgec.compiler, f"{kind}Options")
        held = options(recipe=recipe).recipe
        assert held.name == recipe
        assert options(recipe=held).recipe is held
        assert replace(options(recipe=recipe)).recipe == held
        with pytest.raises(TypeError, match="recipe"):
            options()


def test_names_of_compression_steps() -> None:
    assert (
        tuple(importlib.import_module("edgec.compiler.compress.compression_recipe")._NAMED)
        == STEP_NAMES
    )


def _prints(path: Path) -> list[str]:
    """Calls in a file that print or exit."""
    found = []
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Call):
            name = ast.unparse(item.func)
            if name in ("print", "click.echo", "sys.exit", "Console", "exit"):
                found.append(name)
        elif isinstance(item, ast.Attribute) and ast.unparse(item) in ("sys.stdout", "sys.stderr"):
            found.append(ast.unparse(item))
    return found


def test_only_the_command_line_prints_or_exits() -> None:
    files = {str(path.relative_to(FOLDER)): path for path in FOLDER.rglob("*.py")}
    printing = {
        name for name, path in files.items() if _prints(path) and not name.startswith("cli/")
    }
    assert printing <= MAY_PRINT
    assert _prints(files["cli/printing.py"])


def test_no_function_takes_ten_positional_arguments() -> None:
    for path in FOLDER.rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text())):
            if isinstance(item, ast.FunctionDef) and path.parent.name in ("cli", "tune", "bench"):
                count = len(item.args.posonlyargs) + len(item.args.args)
                assert count < 10, f"{path}: {item.name} takes {count}"


SCRIPT = """\
import sys
from dataclasses import replace
from pathlib import Path
from edgec.compiler import CompileOptions, TuneOptions, bench_bundles, tune_model

with open("runs", "a") as file:
    file.write("once\\n")
model, bundle = sys.argv[1:]
report = bench_bundles([bundle], seconds=0.1)
assert report.load_ms[bundle] > 0
options = CompileOptions(shapes={"image": (1, 1, 8, 8)})
found = tune_model(model, "native", "db", TuneOptions(trials=4, tasks="0"), options)
assert found.trials == 4, found
"""


def test_a_script_without_a_guard_runs_once(
    digits: Path, digits_bundle: Path, tmp_path: Path
) -> None:
    """Worker processes must not start their caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "work").mkdir()
    # A file of the caller's that is called like a module.
    (tmp_path / "work" / "onnx.py").write_text("raise SystemExit('the wrong module')")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(digits), str(digits_bundle)],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "runs").read_text() == "once\n"
    assert done.stdout == ""
