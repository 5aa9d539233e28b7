"""A library is the same with a cold and a warm cache, and a warm one compiles nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.kernel_runs import Built, compile_graph
from support.onnx_graphs import make_model, node, random

from edgec.compiler.codegen import build, kernel_objects
from edgec.compiler.codegen.build import build_library
from edgec.compiler.codegen.kernel_objects import compile_kernels
from edgec.compiler.errors import UnsupportedModelError
from edgec.compiler.support.progress import Silent
from edgec.targets import load_target


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, empty at first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        # Zig's stubs of the C library are not what is tested.
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache" / "zig"))
        yield folder / "edgec" / "kernels"


@pytest.fixture(scope="module")
def cold(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model that was compiled with the empty cache."""
    assert not cache.exists()
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2]),
        node("Sin", ["b"], ["y"]),
    ]
    model = make_model(nodes, {"x": [1, 3, 8, 8]}, ["y"], {"w": random(4, 3, 3, 3)})
    return compile_graph(model, "native", tmp_path_factory.mktemp("cold"))


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def rebuilt(cold: Built, folder: Path) -> bytes:
    build_library([cold.program], cold.target, folder / "model.so")
    return (folder / "model.so").read_bytes()


def test_a_warm_cache_gives_the_same_library_without_a_compiler(
    cold: Built, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = cold.program.functions
    assert len(entries(cache)) == len(kernels) > 2
    monkeypatch.delattr(kernel_objects, "write_object")
    assert rebuilt(cold, tmp_path) == cold.library.read_bytes()


def test_a_damaged_entry_is_compiled_again(cold: Built, cache: Path, tmp_path: Path) -> None:
    for entry in entries(cache):
        entry.write_bytes(entry.read_bytes()[:-1])
    assert rebuilt(cold, tmp_path) == cold.library.read_bytes()
    assert len(entries(cache)) == len(cold.program.functions)


def test_another_target_is_another_content(cold: Built, cache: Path, tmp_path: Path) -> None:
    before = set(entries(cache))
    name, function = next(iter(cold.program.functions.items()))
    compile_kernels({name: function}, load_target("rpi4"), tmp_path)
    assert len(set(entries(cache)) - before) == 1


class Told(Silent):
    """Remembers what parts there were, and how many were done."""

    def __init__(self) -> None:
        self.titles: list[tuple[str, int | None]] = []
        self.done = 0

    @contextmanager
    def parts(self, title: str, total: int | None) -> Iterator[Callable[[], None]]:
        self.titles.append((title, total))

        def advance() -> None:
            self.done += 1

        yield advance


def test_progress_is_told_of_every_kernel(cold: Built, tmp_path: Path) -> None:
    told = Told()
    paths = compile_kernels(cold.program.functions, cold.target, tmp_path, told)
    assert told.titles == [("kernels", len(paths))]
    assert told.done == len(paths)
    assert [path.stem for path in paths] == list(cold.program.functions)


def test_no_kernels_are_no_objects(cold: Built, tmp_path: Path) -> None:
    assert compile_kernels({}, cold.target, tmp_path) == []


def test_weights_that_code_cannot_reach_are_refused_before_kernels_are_compiled(
    cold: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MAX_WEIGHT_BYTES", 16)
    with pytest.raises(UnsupportedModelError, match=r"the weights take \d+ MB; a library holds"):
        build_library([cold.program], cold.target, tmp_path / "model.so")
    assert not list(tmp_path.iterdir())
