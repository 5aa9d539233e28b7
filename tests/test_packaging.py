"""The package as it is installed: nothing forgotten, nothing loaded twice."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgec.compiler
import edgec.models
import edgec.targets

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "models", "targets")


def test_every_package_on_disk_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        ".".join(("edgec", *path.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in {".py", ".toml", ".jsonl"}
    }
    assert set(settings["packages"]) == on_disk


def test_every_file_of_data_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]
    forgotten = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix not in {".py", ".pyc"}
        if not any(
            path.match(pattern)
            for pattern in patterns.get(
                ".".join(("edgec", *path.parent.relative_to(ROOT).parts)), ()
            )
        )
    ]
    assert forgotten == []


def test_no_module_is_loaded_under_a_bare_name() -> None:
    assert [name for name in sys.modules if name.split(".")[0] in FOLDERS] == []


# These need what edgec does not: a training script, and a rival of `bench`.
OPTIONAL = {"edgec.models.training.train_digits", "edgec.compiler.support.silent_openvino"}


def modules() -> list[str]:
    names = []
    for package in (edgec.compiler, edgec.models, edgec.targets):
        names.append(package.__name__)
        found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        names += [module.name for module in found if not module.name.endswith("__main__")]
    return sorted(set(names) - OPTIONAL)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names() -> None:
    assert set(edgec.compiler.__all__) == {*edgec.compiler._HOME, "__version__"}
    for name in edgec.compiler._HOME:
        assert getattr(edgec.compiler, name).__name__ == name


@pytest.mark.parametrize(
    "module",
    [
        "bundle.bundle",
        "bundle.manifest",
        "errors",
        "frontend.onnx_facts",
        "frontend.onnx_file",
        "frontend.simplify",
        "ir.signature",
        "numerics.activations",
        "numerics.affine",
        "numerics.masks",
        "numerics.observers",
        "numerics.pair_sums",
        "numerics.resize_table",
        "numerics.second_order",
        "numerics.support",
        "options",
        "parity.compare",
        "runtime.inputs",
    ],
)
def test_the_lower_layers_need_no_tvm(module: str) -> None:
    program = (
        f"import sys, edgec.targets, edgec.targets.isa, edgec.compiler.{module}; "
        "assert not {'tvm', 'tvm_ffi'} & set(sys.modules), 'tvm is loaded'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
